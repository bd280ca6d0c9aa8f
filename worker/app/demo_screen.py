"""
What a person sees of the demonstration: headlines, a live line of progress, tables.

Owns the terminal. Where there is none, the same lines come without colours and movement.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from worker.adapters.pg_dead_letters import Group
from worker.embedded.demo.ledger import Ledger
from worker.ops.search import Found

SNIPPET_CHARACTERS = 150
LISTED = 5


class Screen:
    """The terminal of the demonstration."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def headline(self, text: str) -> None:
        """Say what comes next."""
        self.console.print(f"\n[bold]{escape(text)}[/bold]")

    def line(self, text: str) -> None:
        """Say one thing."""
        self.console.print(f"  {escape(text)}")

    def copied(self, text: str) -> None:
        """Show a line that is made to be copied: never wrapped, at the first column."""
        self.console.print(text, soft_wrap=True, markup=False)

    def status(self, text: str) -> AbstractContextManager[object]:
        """Show that something takes a while."""
        return self.console.status(f"  {escape(text)}")

    def flow(self, total: int) -> "Flow":
        """Show events flowing from the topic to the table."""
        return Flow(self.console, total)

    def costs(self, rows: Sequence[tuple[str, int, int, int]]) -> None:
        """Show what was paid for."""
        table = Table("", "documents", "chunks embedded", "chunks kept", title="The bill")
        for name, documents, embedded, kept in rows:
            table.add_row(name, f"{documents:,}", f"{embedded:,}", f"{kept:,}")
        self._table(table)

    def found(self, words: str, tenant: str, found: Sequence[Found]) -> None:
        """Show the answers to a search."""
        self.line(f"“{words}” ({tenant})")
        for one in found:
            text = " ".join(one.content.split())[:SNIPPET_CHARACTERS]
            self.console.print(
                f"    {one.rank}. [green]{one.score:.3f}[/green] "
                f"[bold]{escape(one.document)}[/bold]  [dim]{escape(text)}[/dim]"
            )

    def groups(self, groups: Sequence[Group]) -> None:
        """Show dead letters by their cause."""
        table = Table("letters", "reason", "sample", "detail", title="Dead letters")
        for one in groups:
            table.add_row(str(one.letters), one.reason, one.sample, escape(one.detail))
        self.console.print(table)

    def ledger(self, ledger: Ledger) -> None:
        """Show the fate of every event."""
        table = Table("fate", "events", title="The ledger")
        table.add_row("carried by the row or the tombstone", f"{ledger.carried:,}")
        table.add_row("… of them repaired and replayed", f"{ledger.replayed:,}")
        table.add_row("superseded by a later version", f"{ledger.superseded:,}")
        for reason, count in sorted(ledger.reasons.items()):
            table.add_row(f"dead letter: {reason}", f"{count:,}")
        table.add_row("[bold]lost[/bold]", f"[bold]{len(ledger.lost):,}[/bold]")
        table.add_section()
        table.add_row("events in the topic", f"{ledger.events:,}")
        self._table(table)
        for name, wrong in (
            ("lost", ledger.lost),
            ("stored otherwise than published", ledger.torn),
            ("stored but never published", ledger.strangers),
        ):
            if wrong:
                self.line(f"{name}: {', '.join(wrong[:LISTED])} ({len(wrong)} in all)")

    def _table(self, table: Table) -> None:
        for column in table.columns[1:]:
            column.justify = "right"
        self.console.print(table)


class Flow:
    """One live line: published, stored, lag, documents a second."""

    def __init__(self, console: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("  stored"),
            BarColumn(32),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn("published {task.fields[published]:,}  lag {task.fields[lag]:,}"),
            TextColumn("{task.fields[rate]:,.0f} docs/s"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=total, published=0, lag=0, rate=0.0)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state standing."""
        self._progress.stop()

    def show(self, published: int, settled: int, seconds: float) -> None:
        """Draw the present state."""
        self._progress.update(
            self._task,
            completed=settled,
            published=published,
            lag=max(0, published - settled),
            rate=settled / max(seconds, 0.001),
        )
