"""
The admin port: is it alive, is it ready, what does it do, what are its numbers.

Owns one small HTTP server, on loopback unless told otherwise; it reads and changes nothing.
`/livez` fails only where a restart would help; `/readyz` says whether work is being taken.
Both answer 200 or 503 with the reasons as JSON. `/scale` tells an autoscaler how many workers
there should be, 503 where that cannot be known. Never shows a setting, a text or a secret:
what is shown is what the callables return.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from worker.errors import ConfigError, WorkerError
from worker.telemetry import METRICS_CONTENT_TYPE

Verdict = tuple[bool, Mapping[str, Any]]
"""Whether it is well, and the reasons."""

OK, UNAVAILABLE = 200, 503
PATHS = ("/livez", "/readyz", "/metrics", "/state", "/scale")
"""What is answered, beside a page with links to it."""
CLOSE_SECONDS = 1.0  # a scrape that is under way may end


class AdminServer:
    """The server; `start` begins to listen, `port` then says where."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        state: Callable[[], Mapping[str, Any]],
        live: Callable[[], Verdict],
        ready: Callable[[], Verdict],
        metrics: Callable[[], bytes],
        scale: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._host = host
        self._port = port
        self._state = state
        self._live = live
        self._ready = ready
        self._metrics = metrics
        self._scale = scale
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port: the chosen one, once started, where any free one was asked for."""
        return self._port

    async def start(self) -> None:
        """
        Begin to listen; nothing changes where it listens already.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        if self._runner is not None:
            return
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_get("/state", self._state_json)
        app.router.add_get("/scale", self._advice)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS)
        await runner.setup()
        try:
            await _site(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"the admin port cannot listen on {self._host}:{self._port} "
                f"({error.strerror or error}): set telemetry.admin_port to a free port, "
                "or to 0 for any"
            ) from error
        self._port = runner.addresses[0][1]
        self._runner = runner

    async def close(self) -> None:
        """Stop listening. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _index(self, _: web.Request) -> web.Response:
        links = "".join(f'<li><a href="{path}">{path}</a></li>' for path in PATHS)
        return web.Response(
            text=f"<!doctype html><title>embedfleet</title><ul>{links}</ul>",
            content_type="text/html",
        )

    async def _livez(self, _: web.Request) -> web.Response:
        return _verdict(self._live())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._ready())

    async def _metrics_text(self, _: web.Request) -> web.Response:
        headers = {"Content-Type": METRICS_CONTENT_TYPE}
        return web.Response(body=self._metrics(), headers=headers)

    async def _state_json(self, _: web.Request) -> web.Response:
        return _json(OK, self._state())

    async def _advice(self, _: web.Request) -> web.Response:
        try:
            return _json(OK, await self._scale())
        except WorkerError as error:
            return _json(UNAVAILABLE, {"ok": False, "error": str(error)})


def _site(runner: web.AppRunner, host: str, port: int) -> web.BaseSite:
    """
    Return where it listens: `::` is any address of IPv4 as well.

    A pod does not know which of the two its cluster speaks; asyncio, told `::`, would listen
    on IPv6 alone, and where a kernel has none, nowhere.
    """
    if host != "::":
        return web.TCPSite(runner, host, port)
    if not socket.has_dualstack_ipv6():
        return web.TCPSite(runner, "0.0.0.0", port)  # noqa: S104 - it was asked for
    return web.SockSite(
        runner,
        socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True),
    )


def _verdict(verdict: Verdict) -> web.Response:
    is_well, reasons = verdict
    return _json(OK if is_well else UNAVAILABLE, {"ok": is_well, **reasons})


def _json(status: int, content: Mapping[str, Any]) -> web.Response:
    # `no-store`: a proxy must not answer for a worker that is gone.
    return web.Response(
        status=status,
        body=msgspec.json.encode(content, enc_hook=str),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
