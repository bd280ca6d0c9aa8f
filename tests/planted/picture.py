"""The table of planted bugs as people read it: `make schemas` writes it."""

from tests.planted.runs import Run
from tests.planted.table import ON_A_FLEET, TABLE
from tests.support.generate import table


def picture() -> str:
    """Return the table as people read it."""
    rows = [
        (
            row.number,
            row.broken,
            f"`{row.plant.__name__}`",
            "; ".join(_named(caught.run) for caught in row.caught),
            "; ".join(dict.fromkeys(f"`{caught.sign}`" for caught in row.caught)),
            row.remark,
        )
        for row in TABLE
    ]
    fleet = [
        (f"`{plant.__name__}`", " or ".join(f"`{one}`" for one in sorted(anomalies)))
        for plant, anomalies in ON_A_FLEET.items()
    ]
    titles = ("bug", "what is broken", "planted by", "run that is red", "its sign", "remark")
    found = len({row.plant for row in TABLE})
    return f"""# Planted bugs

A harness that finds nothing has to find what is planted. R1 to R20 are bugs that have lost
data in other projects, C0 to C12 the counterexamples of the protocol: {len(TABLE)} rows,
{found} bugs, as R12 and C0 are one. `bugs.py` breaks a line or so of the worker each.
`test_planted.py` asserts that each run turns red by its sign (the name of an anomaly of
`tests/support/audit.py`, or the line of a test that does not hold), and that without a bug
each is green.

This page is made from `table.py` by `make schemas`.

{table(titles, rows)}

`make chaos-bites` plants these in a fleet of real workers; the oracle
(`tests/chaos/oracle.py`) has to name them:

{table(("planted by", "anomaly"), fleet)}
"""


def _named(run: Run) -> str:
    return f"`{run.where}`{' on real servers' if run.real else ''}"
