"""What the signatures of the commands share: annotations for cyclopts."""

from typing import Annotated, Any

from cyclopts import Parameter

from worker.cli.configuration import Sources
from worker.config import Settings
from worker.errors import ConfigError

_SHOWN_DIGITS = 40

WithSettings = Annotated[Settings, Parameter(name="*", show=False)]
"""
All settings, from wherever they come.

They are flags of every command that takes them, but its help does not list all eighty:
`embedfleet config --explain` does.
"""

WithSources = Annotated[Sources, Parameter(parse=False)]
"""Where the settings come from; filled in by `worker.cli.root`."""


def option(help_: str, **more: Any) -> Parameter:
    """Return how an option is described."""
    return Parameter(help=help_, **more)


def switch(name: str, help_: str) -> Parameter:
    """Return how an option is described that is on where it is named."""
    return Parameter(name=name, help=help_, negative="", show_default=False)


Json = Annotated[bool, switch("--json", "Print JSON, and nothing else, on stdout.")]
Yes = Annotated[bool, switch("--yes", "Do it; without, only say what it would do.")]
DEFAULTS = Settings()

MAX_PARTITION = 2**31 - 1
MAX_OFFSET = 2**63 - 1
"""What Kafka numbers partitions and offsets with."""


def is_number(text: str) -> bool:
    """Tell whether this is written as a whole number, without a sign."""
    return text.isascii() and text.isdigit()


def within(text: str, most: int) -> int:
    """
    Return the number that is written here.

    Raises:
        ConfigError: it is above `most`.
    """
    digits = text.lstrip("0") or "0"
    # Python refuses to read thousands of digits at all.
    if len(digits) > len(str(most)) or int(digits) > most:
        raise ConfigError(f"{digits[:_SHOWN_DIGITS]} is too large: at most {most}")
    return int(digits)
