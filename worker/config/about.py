"""How a setting says what it means and within which bounds, in the line that is used."""

from typing import Any

from msgspec import Meta


def about(description: str, **bounds: Any) -> Meta:
    """Return what a setting means, and its bounds."""
    return Meta(description=description, **bounds)
