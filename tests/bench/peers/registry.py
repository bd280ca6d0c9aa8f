"""
The peers: how each is installed, started, and what its table must hold in the end.

Importable without their packages. A peer is a program of its own in a virtual environment of
its own, since two of them cannot share one. It is told everything by `BENCH_*` variables, runs
until SIGTERM, and writes to a table that is made for it (`create_table`).

    for peer in PEERS:
        python = prepare(peer)
        process = Popen(peer.command(python), env=os.environ | peer.environment | told)
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
ENVIRONMENTS = FOLDER.parents[2] / "build" / "peers"
INSTALLED = "installed"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """
    A program that does the same job.

    `requirements` names the file of its packages, and the environment made of it. One that
    keeps a state does so in the folder `BENCH_STATE`, which must be as old as its table: new
    for a new table, the same after a restart.
    """

    name: str
    title: str
    program: str
    requirements: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, python: Path) -> list[str]:
        """Return what starts it."""
        return [str(python), str(FOLDER / self.program)]


_TUNED = {"BENCH_TUNED": "1"}

PEERS = (
    Peer(
        name="naive",
        title="careful loop, as documented",
        program="naive.py",
        requirements="naive",
    ),
    Peer(
        name="naive-tuned",
        title="careful loop, tuned, in order by key",
        program="naive.py",
        requirements="naive",
        environment=_TUNED | {"BENCH_ORDERED": "1"},
    ),
    Peer(
        name="faststream",
        title="FastStream, acknowledges first, 100 workers",
        program="faststream_app.py",
        requirements="faststream",
        environment=_TUNED,
    ),
    Peer(
        name="faststream-ack",
        title="FastStream, acknowledges what is stored, 8 workers",
        program="faststream_app.py",
        requirements="faststream",
        environment=_TUNED | {"BENCH_ACK": "1"},
    ),
    Peer(
        name="quix",
        title="Quix Streams, a sink of newest events",
        program="quix_app.py",
        requirements="quix",
        environment=_TUNED,
    ),
    Peer(
        name="cocoindex",
        title="CocoIndex 1.0, a topic mapped to a table",
        program="cocoindex_app.py",
        requirements="cocoindex",
        environment=_TUNED | {"COCOINDEX_DISABLE_USAGE_TRACKING": "1"},
    ),
)


def prepare(peer: Peer, uv: str | None = None) -> Path:
    """
    Make the environment of a peer where there is none of these requirements; return its Python.

    Raises:
        FileNotFoundError: there is no uv.
        subprocess.CalledProcessError: uv failed; it has said why.
    """
    folder = ENVIRONMENTS / peer.requirements
    python = folder / "bin" / "python"
    requirements = FOLDER / f"{peer.requirements}.txt"
    wanted = sha256(requirements.read_bytes()).hexdigest()
    mark = folder / INSTALLED
    if mark.exists() and mark.read_text() == wanted:
        return python
    uv = uv or os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise FileNotFoundError("uv is needed: run `make bench-peers`")
    subprocess.run(
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True
    )
    sync = (
        "pip",
        "sync",
        "--quiet",
        "--require-hashes",
        "--python",
        str(python),
        str(requirements),
    )
    subprocess.run([uv, *sync], check=True)
    mark.write_text(wanted)
    return python


def create_table(table: str, dimensions: int, *, index: bool = False) -> str:
    """Return the SQL that makes a peer's table, with an HNSW index where wanted."""
    sql = (
        f"create table {table} (tenant text not null, doc_id text not null,"
        " chunk_no int not null, version bigint not null, content text not null,"
        f" embedding halfvec({dimensions}) not null, primary key (doc_id, chunk_no));"
    )
    return sql + (
        f"create index on {table} using hnsw (embedding halfvec_cosine_ops);" if index else ""
    )


class Newest(NamedTuple):
    """What a document is in the end."""

    version: int
    text: str


class Row(NamedTuple):
    """A row of a peer's table."""

    doc_id: str
    chunk_no: int
    version: int
    content: str


@dataclass
class Wrong:
    """
    How many documents are not as published, each counted once.

    `missing`: no row, though it has a text. `stale`: its newest row is of an older version.
    `extra`: rows of an older version, or more text than it has. `torn`: another text. `undead`:
    rows, though it is deleted or was never published. `misplaced` counts rows: their vector is
    not that of their content.
    """

    missing: int = 0
    stale: int = 0
    extra: int = 0
    torn: int = 0
    undead: int = 0
    misplaced: int = 0

    def __bool__(self) -> bool:
        return any(vars(self).values())


def judge(rows: Iterable[Row], newest: Mapping[str, Newest | None]) -> Wrong:
    """Compare rows with the newest state of each document; None: it is deleted."""
    wrong = Wrong()
    found = set()
    for doc_id, group in groupby(sorted(rows), key=itemgetter(0)):
        found.add(doc_id)
        kind = _fault(list(group), newest.get(doc_id))
        if kind is not None:
            setattr(wrong, kind, getattr(wrong, kind) + 1)
    wrong.missing = sum(
        1
        for name, state in newest.items()
        if state and _words(state.text) and name not in found
    )
    return wrong


def _fault(rows: list[Row], wanted: Newest | None) -> str | None:
    if wanted is None:
        return "undead"
    if max(row.version for row in rows) != wanted.version:
        return "stale"
    text, whole = _words(*(row.content for row in rows)), _words(wanted.text)
    if any(row.version != wanted.version for row in rows) or len(text) > len(whole):
        return "extra"
    return None if text == whole else "torn"


def _words(*texts: str) -> str:
    # Every splitter may drop the white space between two chunks.
    return "".join(word for text in texts for word in text.split())


async def check(
    connection: Any,
    table: str,
    newest: Mapping[str, Newest | None],
    vector_of: Callable[[str], np.ndarray] | None = None,
) -> Wrong:
    """Compare a peer's table with the truth, the vectors too where `vector_of` is given."""
    await connection.set_type_codec(
        "halfvec", schema="public", encoder=bytes, decoder=bytes, format="binary"
    )
    found = await connection.fetch(
        f"select doc_id, chunk_no, version, content, embedding from {table}"
    )
    wrong = judge((Row(*row[:4]) for row in found), newest)
    if vector_of is not None:
        wrong.misplaced = sum(
            not _holds(row["embedding"], vector_of(row["content"])) for row in found
        )
    return wrong


def _holds(halfvec: bytes, vector: np.ndarray) -> bool:
    """Tell whether pgvector's binary form is that of a vector; there are two ways to round."""
    values = np.frombuffer(halfvec, ">f2", offset=4)
    return len(values) == len(vector) and np.allclose(values, vector, rtol=2e-3, atol=1e-6)


def main() -> None:
    """Make the environments of all peers."""
    for peer in PEERS:
        try:
            python = prepare(peer)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            sys.exit(f"{peer.name} cannot be installed: {error}")
        sys.stdout.write(f"{peer.name}: {python}\n")


if __name__ == "__main__":
    main()
