"""
How dead letters are told: lists, one letter in words, and the course of a replay.

Never tells a value, the text of a document, unless it was asked for.
"""

import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from schemas.dead_letter import Facts, Header, Reason
from worker.cli.output import say, show_json, show_table
from worker.core.letters import Letter, Original, State, objection

if TYPE_CHECKING:  # they load client libraries, which the help does without
    from worker.app.dead_letter_job import Shown
    from worker.ops.dead_letters import Ended, Fate

SHOWN_PROBLEMS = 20
KEPT_PROBLEMS = 1000
_HEADER_CHARACTERS = 200
_NAME_CHARACTERS = 120

# Fates of a letter that is left as it is, whatever is said.
_NOTHING_DONE = ("unreadable", "refused", "gone", "busy")

_STATES = {
    State.PENDING: "Its worker has not finished with it.",
    State.PUBLISHED: "It is in the dead-letter topic; nobody has dealt with it.",
    State.PARKED: "It was replayed too often; `replay --force` sends it once more.",
    State.REPLAYED: "It was sent to its topic again.",
    State.DISCARDED: "It was given up by an operator.",
    State.RESOLVED: "Its document is stored at this version or a later one.",
}


def name_of(letter: Letter) -> str:
    """Return how a letter is named: TOPIC/PARTITION/OFFSET of its record."""
    return "/".join(map(str, letter.position))


def second(moment: datetime) -> str:
    """Return a time as it is listed."""
    return moment.isoformat(timespec="seconds")


def counted(letters: int) -> str:
    """Return how many letters these are, in words."""
    return f"{letters} letter" if letters == 1 else f"{letters} letters"


def document_of(letter: Letter) -> str | None:
    """Return the document that a letter is about, None where the ledger does not know it."""
    key = letter.document_key
    return None if key is None else "/".join(key)


def _listed(letter: Letter) -> str | None:
    """Return the document of a letter, or else the key of its record, for a table."""
    name = document_of(letter) or _text(letter.key) or None
    if name is None:
        return None
    shown = "".join(sign if sign.isprintable() else "?" for sign in name)
    return shown if len(shown) <= _NAME_CHARACTERS else f"{shown[:_NAME_CHARACTERS]}..."


def show_letters(letters: Sequence[Letter], *, json: bool) -> None:
    """List letters one by one."""
    if json:
        show_json([facts(letter) for letter in letters])
        return
    head = ("position", "state", "reason", "document", "version", "replays", "last_seen")
    rows = [
        (
            *(name_of(letter), letter.state, letter.reason, _listed(letter)),
            *(letter.version, letter.replays, second(letter.last_seen)),
        )
        for letter in letters
    ]
    show_table(head, rows, empty="there are no such dead letters")


def facts(letter: Letter) -> dict[str, Any]:
    """Return what the ledger knows of a letter, for `--json`."""
    about = asdict(letter) | letter.facts._asdict()
    del about["facts"]
    return about | {
        "position": name_of(letter),
        "origin": letter.origin._asdict(),
        "key": _text(letter.key),
    }


def details(shown: "Shown", *, value: bool) -> dict[str, Any]:
    """Return all about one letter, for `--json`."""
    letter, superseded, original, problem = shown
    what, remedy = _words(letter.reason)
    about = facts(letter) | {
        "what": what,
        "remedy": remedy,
        "superseded": superseded,
        "objection": objection(letter),
        "problem": problem,
        "record": None,
    }
    if original is not None:
        record: dict[str, Any] = {
            "key": _text(original.key),
            "value_bytes": None if original.value is None else len(original.value),
            "headers": [[name, _text(content)] for name, content in original.headers],
        }
        about["record"] = record | (_value(original.value) if value else {})
    return about


def explained(shown: "Shown", *, value: bool) -> Iterator[str]:
    """Tell one letter in words, line by line."""
    letter, superseded, original, _ = shown
    what, remedy = _words(letter.reason)
    yield f"{name_of(letter)}: {letter.reason}, in {letter.stage}"
    yield f"What happened: {what}"
    if letter.detail:
        yield f"Detail:        {letter.detail}"
    yield from _refusals(letter.facts)
    yield f"What to do:    {remedy}"
    yield f"State:         {letter.state}. {_STATES[letter.state]}"
    yield f"A replay:      {_prospect(superseded)}"
    if (why := objection(letter)) is not None:
        yield f"Refused:       {why}"
    document = document_of(letter) or "unknown"
    yield f"Document:      {document}, version {_or_none(letter.version)}"
    yield f"Seen:          first {second(letter.first_seen)}, last {second(letter.last_seen)}"
    yield (
        f"Tried:         {letter.attempts} recorded, {letter.passes} passes before, "
        f"{letter.replays} replays"
    )
    if tuple(letter.origin) != tuple(letter.place):
        yield f"First stood:   {'/'.join(map(str, letter.origin[:3]))}"
    yield f"Fingerprint:   {letter.fingerprint}"
    yield from _record(original, value=value)


def _refusals(known: Facts) -> Iterator[str]:
    status, request, sqlstate, constraint = known
    if status is not None or request is not None:
        yield f"Provider:      status {_or_none(status)}, request id {_or_none(request)}"
    if sqlstate is not None:
        yield f"PostgreSQL:    SQLSTATE {sqlstate}, constraint {_or_none(constraint)}"


def _record(original: Original | None, *, value: bool) -> Iterator[str]:
    if original is None:
        yield "Record:        not to be had"
        return
    yield f"Key:           {_text(original.key)}"
    yield from (f"Header:        {_header(header)}" for header in original.headers)
    if original.value is None:
        yield "Value:         null"
    elif value:
        yield f"Value:         {_text(original.value)}"
    else:
        yield f"Value:         {len(original.value)} bytes (--value shows them)"


def _header(header: Header) -> str:
    name, content = header
    text = _text(content) or "null"
    return f"{name}: {text[:_HEADER_CHARACTERS]}"


def _words(code: str) -> tuple[str, str]:
    for reason in Reason:
        if reason == code:
            return reason.what, reason.remedy
    return "A newer version than this one gave the reason.", "Ask a newer embedfleet."


def _prospect(superseded: bool | None) -> str:  # noqa: FBT001 - three answers of one question
    if superseded is None:
        return "the ledger does not know the document, so nothing can be foretold"
    if superseded:
        return "would change nothing: this version or a later one is stored, or a delete of it"
    return "would count: nothing at or above its version is stored"


def _or_none(value: object) -> object:
    return "none" if value is None else value


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")


def _value(value: bytes | None) -> dict[str, str | None]:
    try:
        return {"value": None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": b64encode(value or b"").decode()}


class Report:
    """The course of a replay: counts, the first problems, and how it is summed up."""

    def __init__(self) -> None:
        self.letters = 0
        self.really = False
        self.fates: Counter[Fate] = Counter()
        self.problems: list[Ended] = []
        self.on_begin: Callable[[int], object] = lambda _: None
        self.on_ended: Callable[[], object] = lambda: None
        self._started = time.monotonic()

    def begin(self, letters: int, really: bool) -> None:  # noqa: FBT001 - a fact, told by the job
        """Take note of how many letters there are, and whether anything will happen."""
        self.letters, self.really = letters, really
        self.on_begin(letters)

    def add(self, ended: "Ended") -> None:
        """Take note of what was done with one letter."""
        self.fates[ended.fate] += 1
        if ended.why:
            if len(self.problems) < KEPT_PROBLEMS:
                self.problems.append(ended)
            if len(self.problems) <= SHOWN_PROBLEMS:
                say(f"{name_of(ended.letter)}: {ended.fate}: {ended.why}")
        self.on_ended()

    @property
    def sentence(self) -> str:
        """How many of each fate."""
        counts = [f"{count} {fate}" for fate, count in sorted(self.fates.items())]
        return ", ".join(counts) or "nothing to replay"

    def sum_up(self, *, json: bool, dry_run: bool) -> int:
        """Say how it ended; returns the exit code."""
        if json:
            show_json(self._facts())
        mood = "would be: " if self.letters and not self.really else ""
        say(f"{mood}{self.sentence}")
        if not self.really and not dry_run and self.letters:
            if any(fate not in _NOTHING_DONE for fate in self.fates):
                say("nothing was sent: say --yes")
            return 1
        return 1 if self.problems else 0

    def _facts(self) -> dict[str, Any]:
        problems = [
            {"position": name_of(one.letter), "fate": one.fate, "why": one.why}
            for one in self.problems
        ]
        return {
            "done": self.really,
            "letters": self.letters,
            "fates": self.fates,
            "problems": problems,
            "seconds": round(time.monotonic() - self._started, 3),
        }


@contextmanager
def progress(report: Report) -> Iterator[None]:
    """Show a bar while a replay runs, where there is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=None)
        report.on_begin = lambda letters: bar.update(task, total=letters)
        report.on_ended = lambda: bar.update(task, advance=1)
        yield
