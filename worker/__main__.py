"""The entry point: `embedfleet`, or `python -m worker`."""

import os
import signal
import sys

from worker.cli.interrupts import INTERRUPTED, end_as_by_an_interrupt


def main() -> None:
    """Run the command line and exit with its code."""
    _open_what_is_closed()
    end_as_by_an_interrupt(signal.SIGTERM)
    try:
        from worker.cli.root import main as run

        code = run()
    except KeyboardInterrupt:  # while the command line was loaded
        code = INTERRUPTED
    sys.exit(code)


def _open_what_is_closed() -> None:
    """
    Open standard streams that were closed, to nowhere.

    Else the first files that are opened get their numbers, and whatever is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
