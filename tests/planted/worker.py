"""A worker with one bug of `bugs`: `PLANTED_BUG=name python -m tests.planted.worker run`."""

import os
import sys

import pytest

from tests.planted import bugs
from worker.cli.root import main as run

VARIABLE = "PLANTED_BUG"


if __name__ == "__main__":
    getattr(bugs, os.environ[VARIABLE])(pytest.MonkeyPatch())
    sys.exit(run())
