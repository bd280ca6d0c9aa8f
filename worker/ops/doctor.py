"""
One-shot job: look at all that a worker needs, one thing after the other, and say what is wrong.

A check is a name and a call that returns findings; a call that fails is a finding, too. Checks
are given as chains: after a failed call, or a gate that did not hold, the rest of a chain is
left out, because it could only say the same again. Nothing waits longer than its limit, and
nothing is changed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from worker.errors import ConfigError, WorkerError


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """What one check found: a line for people, and what to do about it."""

    check: str
    status: Status
    detail: str
    hint: str = ""


class Check(NamedTuple):
    """
    One thing to look at; `hint` is what to do where the call itself fails.

    `refused_hint` stands in its place where somebody is there and refuses us.
    """

    name: str
    look: Callable[[], Awaitable[Iterable[Finding]]]
    limit_seconds: float
    hint: str = ""
    is_gate: bool = False
    refused_hint: str = ""


async def examine(
    checks: Iterable[Check], *, seen: Callable[[Finding], object]
) -> list[Finding]:
    """Run a chain of checks; returns what was found, and tells `seen` at once."""
    found: list[Finding] = []
    for check in checks:
        findings, went = await _look(check)
        for finding in findings:
            seen(finding)
        found += findings
        if not went or (check.is_gate and has_failed(findings)):
            break
    return found


def has_failed(findings: Iterable[Finding]) -> bool:
    """Tell whether a worker could not work."""
    return any(finding.status is Status.FAIL for finding in findings)


async def _look(check: Check) -> tuple[list[Finding], bool]:
    try:
        async with asyncio.timeout(check.limit_seconds):
            return list(await check.look()), True
    except TimeoutError:
        detail, hint = f"no answer within {check.limit_seconds:g} s", check.hint
    except ConfigError as error:
        detail, hint = str(error), check.refused_hint or check.hint
    except WorkerError as error:
        detail, hint = str(error), check.hint
    return [Finding(check.name, Status.FAIL, detail, hint)], False
