"""
`embedfleet` in a process to which something happens in the middle of an export.

`python -m tests.support.dying_export SIGKILL 3 export ...`: a signal when it writes rows the
third time; `ENOSPC`: the system takes no more; `LOST`: a connection is. Slices and parts are
small, so that there are many in little.
"""

import errno
import os
import signal
import sys
from itertools import count

from worker.__main__ import main
from worker.adapters import export_folder, pg_export
from worker.errors import StoreUnavailable

ROWS_OF_A_SLICE = 3


def make_small() -> None:
    pg_export.SLICE_BYTES = ROWS_OF_A_SLICE * 600
    export_folder.PART_BYTES = 1


if __name__ == "__main__":
    _, name, number, *arguments = sys.argv
    make_small()
    append, numbers = export_folder.ExportFolder.append, count(1)

    def append_or_die(folder, rows):
        append(folder, rows)
        if next(numbers) < int(number):
            return
        if name in signal.Signals.__members__:
            os.kill(os.getpid(), signal.Signals[name])
        elif name == "LOST":
            raise StoreUnavailable("PostgreSQL has ended the connection")
        else:
            code = getattr(errno, name)
            raise OSError(code, os.strerror(code))

    export_folder.ExportFolder.append = append_or_die
    sys.argv[1:] = arguments
    sys.exit(main())
