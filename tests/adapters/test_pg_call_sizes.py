"""How many chunks a call to PostgreSQL takes: as many as it writes in a quarter of a second."""

import pytest

from tests.support.store_changes import ARTICLES, key, upsert, vector
from worker.adapters import pg_documents
from worker.adapters.pg_documents import Sizes, Wired, write_chunks
from worker.core.model import Base


class SlowTable:
    """Takes so many seconds a row, on a clock of its own; notes how many came at once."""

    def __init__(self, row_seconds: float) -> None:
        self.row_seconds = row_seconds
        self.now = 0.0
        self.calls: list[int] = []

    def monotonic(self) -> float:
        return self.now

    async def copy_records_to_table(self, _table, *, records, columns) -> None:
        assert columns == pg_documents._CHUNK_COLUMNS
        self.calls.append(len(records))
        self.now += len(records) * self.row_seconds
        if self.now > 60:
            raise TimeoutError


@pytest.fixture
def table(monkeypatch) -> SlowTable:
    slow = SlowTable(0.0)
    monkeypatch.setattr(pg_documents, "monotonic", slow.monotonic)
    return slow


def new_document(chunks: int, name: str = "one") -> Wired:
    texts = [f"text {number}" for number in range(chunks)]
    change = upsert(ARTICLES, Base(), version=1, of=key(name), texts=texts)
    return change, {one.id: vector(1, 2) for one in change.insert}


async def write(table: SlowTable, chunks: int, sizes: Sizes) -> list[int]:
    """Return how many chunks each call took."""
    table.calls.clear()
    await write_chunks(table, "chunks", [new_document(chunks)], sizes, copies=True)
    return table.calls


async def test_calls_grow_to_the_most_where_nothing_takes_long(table):
    assert await write(table, 600, {}) == [50, 100, 200, 200, 50]


async def test_the_next_transaction_begins_with_what_the_last_one_has_learned(table):
    sizes: Sizes = {}
    await write(table, 600, sizes)
    assert await write(table, 600, sizes) == [200, 200, 200]


async def test_calls_become_as_small_as_they_are_slow(table):
    table.row_seconds = 0.02  # an index of many dimensions
    sizes: Sizes = {}
    assert await write(table, 80, sizes) == [50, 12, 12, 6]
    assert await write(table, 24, sizes) == [12, 12]
    table.row_seconds = 1
    assert await write(table, 15, sizes) == [12, 1, 1, 1]


async def test_few_chunks_that_take_long_do_not_make_calls_small_for_long(table):
    sizes: Sizes = {}
    table.row_seconds = 1  # a lock was waited for
    await write(table, 1, sizes)
    table.row_seconds = 0
    assert await write(table, 150, sizes) == [1, 2, 4, 8, 16, 32, 64, 23]


async def test_a_transaction_without_chunks_teaches_nothing(table):
    sizes: Sizes = {}
    await write(table, 600, sizes)
    await write(table, 0, sizes)
    assert await write(table, 200, sizes) == [200]


async def test_after_a_failed_call_the_next_begins_small_again(table):
    sizes: Sizes = {}
    await write(table, 600, sizes)
    table.row_seconds = 1
    with pytest.raises(TimeoutError):
        await write(table, 200, sizes)
    table.row_seconds, table.now = 0, 0
    assert await write(table, 100, sizes) == [50, 50]
