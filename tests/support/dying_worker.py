"""
`embedfleet` in a process that dies of a text, as one does of a defect in native code.

`python -m tests.support.dying_worker run`: a text that begins with `DEADLY` ends the process
while it is cut, at once and without a goodbye. `DYING_WORKER_MEMORY_BYTES` limits what the
process may allocate, as the limit of a container does.
"""

import os
import resource
import sys

from worker.__main__ import main
from worker.pipeline import prepare

DEADLY = "this text ends the process"

split = prepare.split


def split_or_die(text, *how):
    if text.startswith(DEADLY):
        os._exit(70)
    return split(text, *how)


if __name__ == "__main__":
    if limit := int(os.environ.get("DYING_WORKER_MEMORY_BYTES", "0")):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    prepare.split = split_or_die
    sys.exit(main())
