"""How far a job is: a bar on a terminal, else a line now and then."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.cli.output import say
from worker.ops.index_build import Far

_TELL_AT_SHARE = 0.1

Watch = Callable[[str, Far], None]


@contextmanager
def watched() -> Iterator[Watch]:
    """Yield what is told of each collection's build."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[far]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, far="")

        def show(name: str, far: Far) -> None:
            description = f"{name}: {far.doing}"
            bar.update(task, description=description, completed=far.share or 0, far=told(far))

        yield show


class Lines:
    """Tells where a phase begins, and at each tenth of it."""

    def __init__(self) -> None:
        self._doing: tuple[str, str] | None = None
        self._told = 0.0

    def __call__(self, name: str, far: Far) -> None:
        """Tell, if there is anything new."""
        share = far.share or 0.0
        if (name, far.doing) != self._doing:
            self._doing, self._told = (name, far.doing), 0.0
        elif share < self._told + _TELL_AT_SHARE:
            return
        self._told = share
        say(" ".join(filter(None, (f"{name}: {far.doing}", told(far)))))


def told(far: Far) -> str:
    """Return how much is done, what is to be said besides, and how long the rest takes."""
    share = None if far.share is None else f"{far.share:.0%}"
    left = None if far.left_seconds is None else f"{_clock(far.left_seconds)} left"
    return ", ".join(filter(None, (share, far.detail, left)))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
