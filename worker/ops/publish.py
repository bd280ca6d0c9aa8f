"""
One-shot job: publish events from files, a stream or a folder, and say what was not sent.

Reads no further than the publisher takes, so a file of any size needs the same memory. Every
line or file ends in one of two ways: acknowledged by Kafka, or reported with its place and a
reason. What a worker would dead-letter is refused here, before anything of it is sent.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from schemas.events import DocumentUpserted, JsonEvent
from schemas.records import InvalidEvent
from worker.errors import ConfigError
from worker.ops.lines import chunks, lines

CONTENT_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".rst": "text/x-rst",
}
STDIN = "-"

_EVENT: msgspec.json.Decoder[JsonEvent] = msgspec.json.Decoder(JsonEvent)


class Bad(NamedTuple):
    """What was not sent: where it stands, and why."""

    where: str
    reason: str


class Read(NamedTuple):
    """One line or file as it was read."""

    where: str
    content: JsonEvent | Bad
    size_bytes: int


@dataclass(frozen=True)
class Source:
    """
    One thing to publish: a file of JSON lines, `-`, or text files below a folder.

    `tenant` and `collection` are those of the texts; events name their own.
    """

    path: str
    tenant: str | None = None
    collection: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether it holds texts, to which a tenant and a collection must be named."""
        path = Path(self.path)
        return path.is_dir() or path.suffix.lower() in CONTENT_TYPES

    @property
    def size_bytes(self) -> int | None:
        """How much there is to read, None where nobody knows."""
        if self.path == STDIN or not Path(self.path).is_file():
            return None if self.path == STDIN else sum(map(_size, text_files(Path(self.path))))
        return Path(self.path).stat().st_size


class Publishing(Protocol):
    """What the job needs of `schemas.publisher.Publisher`."""

    def prepare(self, event: JsonEvent) -> object:
        """Raise `InvalidEvent` where a worker, or the topic, would refuse the event."""

    async def publish_many(
        self,
        events: AsyncIterable[JsonEvent],
        *,
        on_delivered: Callable[[JsonEvent, object], object],
    ) -> int:
        """Publish in order; returns how many were acknowledged."""


@dataclass
class Publication:
    """
    A publication under way: what was acknowledged and what was not sent.

    `on_read` and `on_bad` are called as it goes on; a thousand bad lines are kept.
    """

    on_read: Callable[[Read], object] = lambda _: None
    on_bad: Callable[[Bad], object] = lambda _: None
    published: int = 0
    bad: int = 0
    first_bad: list[Bad] = field(default_factory=list)

    KEPT = 1000

    async def run(
        self, publisher: Publishing, sources: Iterable[Source], *, max_line_bytes: int
    ) -> None:
        """Publish everything; raises what the publisher raises, the counts stay right."""
        async with aclosing(self._good(publisher, sources, max_line_bytes)) as events:
            await publisher.publish_many(events, on_delivered=self._count)

    async def _good(
        self, publisher: Publishing, sources: Iterable[Source], max_line_bytes: int
    ) -> AsyncGenerator[JsonEvent, None]:
        for source in sources:
            async with aclosing(_read(source, max_line_bytes)) as reads:
                async for read in reads:
                    self.on_read(read)
                    content = _judged(publisher, read)
                    if isinstance(content, Bad):
                        self._report(content)
                    else:
                        yield content

    def _report(self, bad: Bad) -> None:
        self.bad += 1
        if len(self.first_bad) < self.KEPT:
            self.first_bad.append(bad)
        self.on_bad(bad)

    def _count(self, _event: JsonEvent, _place: object) -> None:
        self.published += 1


def _judged(publisher: Publishing, read: Read) -> JsonEvent | Bad:
    if isinstance(read.content, Bad):
        return read.content
    try:
        publisher.prepare(read.content)
    except InvalidEvent as error:
        return Bad(read.where, f"{error.detail} ({error.reason})")
    return read.content


async def _read(source: Source, max_line_bytes: int) -> AsyncGenerator[Read, None]:
    if source.is_text:
        for read in _texts(source):
            yield read
        return
    descriptor = 0 if source.path == STDIN else _opened(source.path)
    try:
        async with aclosing(_events(source, descriptor, max_line_bytes)) as reads:
            async for read in reads:
                yield read
    finally:
        if source.path != STDIN:
            os.close(descriptor)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


async def _events(
    source: Source, descriptor: int, max_line_bytes: int
) -> AsyncGenerator[Read, None]:
    name = "stdin" if source.path == STDIN else source.path
    number = 0
    async with aclosing(chunks(descriptor)) as pieces:
        async for line in lines(pieces, max_line_bytes):
            number += 1
            where = f"{name}:{number}"
            if line is None:
                reason = f"longer than {max_line_bytes} bytes"
                yield Read(where, Bad(where, reason), max_line_bytes)
            elif line.strip():
                yield Read(where, _event(where, line), len(line) + 1)


def _event(where: str, line: bytes) -> JsonEvent | Bad:
    # The last two are no errors of msgspec's, but as common.
    try:
        return _EVENT.decode(line)
    except msgspec.ValidationError as error:
        return Bad(where, str(error))
    except msgspec.DecodeError as error:
        return Bad(where, f"no JSON: {error}")
    except UnicodeDecodeError:
        return Bad(where, "not UTF-8")
    except RecursionError:
        return Bad(where, "nested too deeply")


def _texts(source: Source) -> Iterator[Read]:
    root = Path(source.path)
    for path in text_files(root):
        name = path.name if path == root else path.relative_to(root).as_posix()
        yield Read(str(path), _document(source, path, name), _size(path))


def _document(source: Source, path: Path, name: str) -> DocumentUpserted | Bad:
    assert source.tenant is not None
    assert source.collection is not None
    try:
        changed_ns = path.stat().st_mtime_ns
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return Bad(str(path), "not UTF-8")
    except OSError as error:
        return Bad(str(path), error.strerror or str(error))
    return DocumentUpserted(
        tenant=source.tenant,
        collection=source.collection,
        id=name,
        version=max(0, changed_ns // 1000),
        text=text,
        content_type=CONTENT_TYPES[path.suffix.lower()],
    )


def text_files(root: Path) -> Iterator[Path]:
    """Yield the text files below a folder in the order of their names; hidden ones are not."""
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in CONTENT_TYPES:
                yield Path(folder, name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
