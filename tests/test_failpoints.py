"""A failpoint does what it was set to, where and when, and nothing where none is set."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker import failpoints
from worker.failpoints import NAMES, Failpoints

ROOT = Path(__file__).parents[1]
REACH = """
import asyncio, sys
from worker import failpoints
for _ in range(3):
    asyncio.run(failpoints.reach("in_transaction"))
print("through")
"""


def reaching(text):
    """What a process does that reaches `in_transaction` three times."""
    return subprocess.Popen(
        [sys.executable, "-c", REACH],
        env=os.environ | {failpoints.VARIABLE: text},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("exit", failpoints.EXIT_CODE)]
)
def test_a_process_dies_there_and_has_said_so_before(action, code):
    output, errors = (process := reaching(f"in_transaction:{action}:#2")).communicate()
    assert process.returncode == code
    assert output == ""
    assert json.loads(errors) == {
        "action": "failpoint",
        "name": "in_transaction",
        "does": action,
    }


def test_a_process_stops_there_until_it_is_told_to_go_on():
    process = reaching("in_transaction:stop:#3")
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate()
    assert (process.returncode, output) == (0, "through\n")


def test_nothing_happens_where_no_failpoint_is_set_or_another_one():
    for text in ("", "after_commit:kill"):
        output, errors = reaching(text).communicate()
        assert (output, errors) == ("through\n", "")


def test_a_delay_lets_the_others_go_on():
    async def others():
        points = Failpoints("after_commit:delay=60")
        async with asyncio.timeout(0.01):
            await points.reach("after_commit")

    with pytest.raises(TimeoutError):
        asyncio.run(others())


def test_a_probability_is_kept_and_repeats_with_its_seed():
    def fired(seed):
        points = Failpoints(f"after_commit:exit:0.3,seed:{seed}")
        return [points.due("after_commit") is not None for _ in range(1000)]

    assert fired(1) == fired(1) != fired(2)
    assert 200 < sum(fired(1)) < 400


@pytest.mark.parametrize("text", ["nowhere:kill", "after_commit:jump", "after_commit"])
def test_what_is_no_failpoint_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - of the unpacking, or ours
        Failpoints(text)


def test_every_failpoint_is_reached_somewhere_and_none_that_is_not_listed():
    sources = [path.read_text("utf-8") for path in (ROOT / "worker").rglob("*.py")]
    reached = [
        name
        for source in sources
        for name in re.findall(r'failpoints\.reach\("(\w+)"\)', source)
    ]
    assert sorted(reached) == sorted(NAMES)


def test_none_is_set_in_the_tests_of_this_process_and_it_costs_nearly_nothing():
    async def reach_often():
        began = time.process_time()
        for _ in range(10_000):
            await failpoints.reach("after_answer")
        return (time.process_time() - began) / 10_000

    assert asyncio.run(reach_often()) < 5e-6
