"""The entry point: `embedfleet`, or `python -m worker`."""

import sys

from worker.cli.root import main as run


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
