"""The entry point: `embedfleet`, or `python -m worker`."""

import signal
import sys

from worker.cli.interrupts import INTERRUPTED, end_as_by_an_interrupt


def main() -> None:
    """Run the command line and exit with its code."""
    end_as_by_an_interrupt(signal.SIGTERM)
    try:
        from worker.cli.root import main as run

        code = run()
    except KeyboardInterrupt:  # while the command line was loaded
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
