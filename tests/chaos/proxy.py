"""
A TCP proxy that hurts: one `Link` stands between one client and one server.

    async with Link(("127.0.0.1", 5432), watch=Commits) as link:
        link.faults.latency_seconds = 0.3           # of every piece, in both directions
        link.faults.blackhole(UP)                   # bytes wait until `heal`
        link.reset()                                # RST to both ends of every connection
        await link.refuse()                         # nobody listens until `heal`

What a fault held back is delivered when it is healed, as TCP does behind a network that was
gone; what it cut is lost. `counts` tell what really happened. With `watch=Commits` the link
reads PostgreSQL's protocol and can cut a connection after the server has said that a COMMIT is
done and before the client has heard it.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

HOST = "127.0.0.1"
UP, DOWN = "up", "down"
"""The directions: from the client to the server, and back."""
PIECE_BYTES = 64 * 1024
_PORTS_USED: set[int] = set()
# A connection that is closed with it is reset (socket(7), SO_LINGER with a time of 0).
LINGER_AND_RESET = struct.pack("ii", 1, 0)


@dataclass
class Faults:
    """What is wrong with a link now; nothing at first."""

    latency_seconds: float = 0.0
    jitter: Callable[[], float] = lambda: 1.0
    bytes_per_second: float | None = None
    slice_bytes: int | None = None
    cut_after_bytes: int | None = None
    cut_commit: Callable[[], bool] | None = None
    _open: dict[str, asyncio.Event] = field(
        default_factory=lambda: {UP: asyncio.Event(), DOWN: asyncio.Event()}
    )

    def __post_init__(self):
        self.pass_on()

    def blackhole(self, *directions: str) -> None:
        """Let nothing through in these directions; in both where none is named."""
        for direction in directions or (UP, DOWN):
            self._open[direction].clear()

    def pass_on(self) -> None:
        """Let everything through that a blackhole held back."""
        for event in self._open.values():
            event.set()

    async def opened(self, direction: str) -> None:
        await self._open[direction].wait()


class Commits:
    """Reads both directions of a PostgreSQL connection (manual, 54.7: message formats)."""

    SSL_REQUEST = 80877103

    def __init__(self):
        self._up = bytearray()
        self._down = bytearray()
        self._is_started = False
        self._ssl_answers = 0
        self._asked = False

    def up(self, data: bytes) -> None:
        """Take note of what the client says."""
        self._up += data
        while (frame := self._next_of_client()) is not None:
            kind, body = frame
            if kind == b"Q" and body.strip(b"\0; ").upper() == b"COMMIT":
                self._asked = True

    def _next_of_client(self) -> tuple[bytes, bytes] | None:
        if self._is_started:
            return _frame(self._up)
        if len(self._up) < 8:
            return None
        size, code = struct.unpack_from("!ii", self._up)
        if len(self._up) < size:
            return None
        del self._up[:size]
        if code == self.SSL_REQUEST:
            self._ssl_answers += 1
        else:
            self._is_started = True
        return b"", b""

    def down(self, data: bytes) -> bool:
        """Tell whether the server says here that a COMMIT the client asked for is done."""
        self._down += data
        while self._ssl_answers and self._down:
            del self._down[:1]
            self._ssl_answers -= 1
        is_done = False
        while (frame := _frame(self._down)) is not None:
            kind, body = frame
            if self._asked and kind == b"C":
                # "ROLLBACK" answers the COMMIT of a transaction that has failed.
                is_done |= body == b"COMMIT\0"
                self._asked = False
        return is_done


def _frame(buffer: bytearray) -> tuple[bytes, bytes] | None:
    if len(buffer) < 5:
        return None
    kind, size = struct.unpack_from("!ci", buffer)
    if len(buffer) < 1 + size:
        return None
    body = bytes(buffer[5 : 1 + size])
    del buffer[: 1 + size]
    return kind, body


@dataclass(eq=False)
class _Connection:
    """Both ends of one connection, and when it is over."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    watch: Commits | None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    pumps: list[asyncio.Task] = field(default_factory=list)
    answered_bytes: int = 0

    def reset(self) -> None:
        """End it at once, whatever holds it; both ends see a reset."""
        self.over.set()
        for pump in self.pumps:
            pump.cancel()
        for end in (self.client, self.server):
            _reset(end)


def _reset(end: asyncio.StreamWriter) -> None:
    if not end.transport.is_closing():
        end.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, LINGER_AND_RESET
        )
    end.transport.abort()


class _Cut(Exception):
    """A fault wants the connection to end."""


class Link:
    """A port in front of a server's port; `async with` opens and closes it."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        port: int = 0,
        name: str = "",
        watch: type[Commits] | None = None,
    ) -> None:
        self.name = name
        self.target = target
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self.ports: set[int] = set()
        """Of our own ends of the connections to the server: by them it knows this client."""
        self._port = port
        self._watch = watch
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_) -> None:
        await self.refuse()
        for serving in self._serving:
            serving.cancel()
        self.reset()
        await asyncio.gather(*self._serving, return_exceptions=True)  # noqa: TID251

    def reset(self) -> None:
        """Reset every connection there is."""
        for connection in list(self._connections):
            self.counts["resets"] += 1
            connection.reset()

    async def refuse(self) -> None:
        """Stop listening; the connections there are go on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def heal(self) -> None:
        """Take all faults away and deliver what they held back."""
        self.faults.pass_on()
        self.faults = Faults()
        await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # the streams would log it
        finally:
            self._serving.discard(task)
            _reset(writer)

    async def _connect(self, reader, writer) -> None:
        try:
            answers, server = await self._reach()
        except OSError:
            self.counts["unreachable"] += 1
            return
        connection = _Connection(writer, server, self._watch() if self._watch else None)
        self._connections.add(connection)
        self.counts["connections"] += 1
        for end in (writer, server):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.TaskGroup() as tasks:
                for way in ((UP, reader, server), (DOWN, answers, writer)):
                    connection.pumps.append(tasks.create_task(self._pump(connection, *way)))
        except* (OSError, _Cut):
            connection.reset()
        finally:
            self._connections.discard(connection)
            _reset(server)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server from a port that no link of this process has had before."""
        used = []
        try:
            while True:
                reader, writer = await asyncio.open_connection(*self.target)
                port = writer.get_extra_info("sockname")[1]
                if port not in _PORTS_USED:
                    _PORTS_USED.add(port)
                    self.ports.add(port)
                    return reader, writer
                used.append(writer)
        finally:
            for writer in used:
                writer.transport.abort()

    async def _pump(self, connection, direction, reader, writer) -> None:
        while data := await reader.read(PIECE_BYTES):
            if self._wants_a_cut(connection, direction, data):
                raise _Cut
            step = self.faults.slice_bytes or len(data)
            for start in range(0, len(data), step):
                await self._pass(connection, direction, data[start : start + step], writer)
        # The other side may still have something to say.
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _wants_a_cut(self, connection, direction, data) -> bool:
        """Look at what passes; a COMMIT that is done is cut before its answer is heard."""
        watch = connection.watch
        if watch is None:
            return False
        if direction == UP:
            watch.up(data)
            return False
        if not watch.down(data):
            return False
        self.counts["commits"] += 1
        cut = self.faults.cut_commit
        if cut is None or not cut():
            return False
        self.counts["commits_cut"] += 1
        return True

    async def _pass(self, connection, direction, piece, writer) -> None:
        faults = self.faults
        await self._hold(connection, faults, direction, len(piece))
        limit = faults.cut_after_bytes
        if direction == DOWN and limit is not None:
            room = limit - connection.answered_bytes
            writer.write(piece[: max(0, room)])
            if room <= len(piece):
                await writer.drain()
                self.counts["cut_after_bytes"] += 1
                raise _Cut
        else:
            writer.write(piece)
        if direction == DOWN:
            connection.answered_bytes += len(piece)
        self.counts["bytes"] += len(piece)
        await writer.drain()
        if faults.slice_bytes:
            self.counts["slices"] += 1
            await asyncio.sleep(0)  # so that each piece is a packet of its own

    async def _hold(self, connection, faults, direction, size) -> None:
        """Keep a piece for as long as the faults of now say, or until it is cut."""
        seconds = faults.latency_seconds * faults.jitter()
        if faults.bytes_per_second:
            seconds += size / faults.bytes_per_second
        if seconds > 0:
            self.counts["delayed"] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await connection.over.wait()
        await faults.opened(direction)
