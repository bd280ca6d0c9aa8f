"""
`embedfleet` in a process that dies of some texts, as one does of a defect in native code.

`python -m tests.support.dying_worker run`: a text that begins with one of `DEATHS` ends the
process while the text is cut, at once and without a goodbye.
"""

import os
import signal
import sys

from worker.__main__ import main
from worker.pipeline import prepare

EXIT = "this text exits"
ABORT = "this text aborts"
EAT = "this text eats all memory"

DEATHS = {
    EXIT: lambda: os._exit(70),
    ABORT: lambda: os.kill(os.getpid(), signal.SIGABRT),
    # Under a limit of memory it ends in a MemoryError, and the worker with it.
    EAT: lambda: b"x" * (1 << 45),
}

split = prepare.split


def split_or_die(text, *how):
    for beginning, die in DEATHS.items():
        if text.startswith(beginning):
            die()
    return split(text, *how)


if __name__ == "__main__":
    prepare.split = split_or_die
    sys.exit(main())
