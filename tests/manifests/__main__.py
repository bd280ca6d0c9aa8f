"""
What users deploy, tried with the real tools: `make manifests`.

Prints each claim with what was seen, and what could not be tried; the exit code says whether
all held. A tool that is not here is named; variables such as `EMBEDFLEET_TEST_HELM` name one.
"""

import sys

from tests.manifests import kubernetes, observability
from tests.support.verdicts import lines


def main() -> int:
    """Try everything; return the exit code."""
    found = [*kubernetes.verdicts(), *observability.verdicts()]
    open_ends = [f"- {one}" for one in (*kubernetes.NOT_VERIFIED, *observability.NOT_VERIFIED)]
    sys.stdout.write("\n".join([*lines(found), "", "not verified here:", *open_ends, ""]))
    return 0 if all(verdict.held for verdict in found) else 1


if __name__ == "__main__":
    sys.exit(main())
