"""How far a job is: a bar on a terminal, else a line now and then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from worker.cli.output import say
from worker.core.progress import Progress, WatchEach

_TELL_AT_SHARE = 0.1


@contextmanager
def watched() -> Iterator[WatchEach]:
    """Yield what is to be told how far a job is."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, told="")

        def show(name: str, now: Progress) -> None:
            description = f"{name}: {now.doing}"
            bar.update(task, description=description, completed=now.share or 0, told=told(now))

        yield show


@contextmanager
def end_told(errors: tuple[type[BaseException], ...], words: str) -> Iterator[WatchEach]:
    """Yield the same, and say what becomes of a job that these end once it has begun."""
    begun = False

    def watch(name: str, now: Progress) -> None:
        nonlocal begun
        begun = True
        show(name, now)

    try:
        with watched() as show:
            yield watch
    except errors:
        if begun:
            say(words)
        raise


class Lines:
    """Tells where a phase begins, and at each tenth of it."""

    def __init__(self) -> None:
        self._doing: tuple[str, str] | None = None
        self._told = 0.0

    def __call__(self, name: str, now: Progress) -> None:
        """Tell, if there is anything new."""
        share = now.share or 0.0
        if (name, now.doing) != self._doing:
            self._doing, self._told = (name, now.doing), 0.0
        elif share < self._told + _TELL_AT_SHARE:
            return
        self._told = share
        say(" ".join(filter(None, (f"{name}: {now.doing}", told(now)))))


def told(now: Progress) -> str:
    """Return how much is done, what is to be said besides, and how long the rest takes."""
    share = None if now.share is None else f"{now.share:.0%}"
    left = None if now.left_seconds is None else f"{_clock(now.left_seconds)} left"
    return ", ".join(filter(None, (share, now.detail, left)))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
