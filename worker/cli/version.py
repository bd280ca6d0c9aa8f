"""The command `version`."""

import platform
from importlib import metadata

from worker.cli.output import show, show_json
from worker.cli.parameters import Json

LIBRARIES = (
    "aiokafka",
    "aiohttp",
    "asyncpg",
    "cyclopts",
    "msgspec",
    "numpy",
    "opentelemetry-sdk",
    "semantic-text-splitter",
    "structlog",
    "uvloop",
)


def version(*, json: Json = False) -> None:
    """Show versions."""
    versions = {
        "embedfleet": _version_of("embedfleet"),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in LIBRARIES},
    }
    if json:
        show_json(versions)
        return
    for name, number in versions.items():
        show(f"{name} {number or 'is not installed'}")


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
