"""
The demonstration's operator: looks at the dead letters, mends one, and sees it arrive.

Does what `embedfleet dlq list`, `show` and `replay --value-file` do, by the same jobs.
"""

from collections.abc import Awaitable, Callable, Iterable

from schemas.codec import encode_event
from schemas.dead_letter import Reason
from worker.app import dead_letter_job, jobs
from worker.app.dead_letter_job import Asked, Shown
from worker.app.demo_screen import Screen
from worker.config import Settings
from worker.core.letters import OPEN, Letter, Selection, State
from worker.embedded.demo.upstream import CUT_OFF
from worker.ops.dead_letters import Ended, Fate
from worker.ops.search import Query

Explain = Callable[[Shown], Iterable[str]]
"""How a letter is told in words; the command line knows."""

BROKEN = Reason.UNDECODABLE.value
QUESTION = "who winds up the clockwork of the lens at night?"


async def work_letters(
    screen: Screen, settings: Settings, explain: Explain, arrived: Callable[[], Awaitable[None]]
) -> bool:
    """
    List the dead letters, explain one, repair and replay it; tell whether it is found then.

    `arrived` returns when the workers have settled one record more.
    """
    screen.headline("The malformed records (`embedfleet dlq list`), and one of them in words")
    chosen = Selection(group=settings.kafka.group, states=OPEN)
    screen.groups(await dead_letter_job.groups(settings, chosen))
    letter = await _letter(settings, Selection(group=chosen.group, reasons=(BROKEN,)))
    for line in explain(await dead_letter_job.show(settings, letter.position)):
        screen.line(line)
    screen.headline("Its value is written whole and replayed (`dlq replay --value-file`)")
    place = Selection(group=chosen.group, positions=(letter.position,))
    ended = await _replay(settings, place)
    screen.line(f"{'/'.join(map(str, letter.position))}: {ended.fate} {ended.why}".rstrip())
    if ended.fate is not Fate.REPLAYED:
        return False
    await arrived()
    state = (await _letter(settings, place)).state
    screen.line(f"settled; the ledger says that it is {state} now")
    found = await jobs.search(settings, Query(QUESTION, CUT_OFF.collection, CUT_OFF.tenant, 1))
    screen.found(QUESTION, CUT_OFF.tenant, found)
    is_found = [one.document for one in found] == [CUT_OFF.id]
    return is_found and state is State.RESOLVED


async def _letter(settings: Settings, selection: Selection) -> Letter:
    (letter,), _ = await dead_letter_job.letters(settings, selection, 1)
    return letter


async def _replay(settings: Settings, selection: Selection) -> Ended:
    """Send the one letter again, with the event that its publisher had meant."""
    asked = Asked(rate_per_second=100, max_replays=3, repaired=encode_event(CUT_OFF))
    ends: list[Ended] = []
    await dead_letter_job.replay(
        settings, selection, asked, on_begin=lambda *_: None, on_ended=ends.append
    )
    (ended,) = ends
    return ended
