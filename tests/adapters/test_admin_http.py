"""The admin port answers what it is told, and says why it cannot listen."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from worker.adapters.admin_http import AdminServer
from worker.errors import ConfigError, StoreUnavailable, WorkerError


class Worker:
    """What the server is told."""

    def __init__(self) -> None:
        self.live: tuple[bool, dict[str, Any]] = (True, {})
        self.ready: tuple[bool, dict[str, Any]] = (True, {})
        self.state: dict[str, Any] = {"partitions": {"documents/0": {"lag": 3}}}
        self.scale: dict[str, Any] | WorkerError = {"replicas": 3, "reason": "lag"}

    async def advice(self) -> dict[str, Any]:
        if isinstance(self.scale, WorkerError):
            raise self.scale
        return self.scale

    def server(self, port: int = 0, host: str = "127.0.0.1") -> AdminServer:
        return AdminServer(
            host,
            port,
            state=lambda: self.state,
            live=lambda: self.live,
            ready=lambda: self.ready,
            metrics=lambda: b"# TYPE x counter\nx_total 1.0\n",
            scale=self.advice,
        )


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def server(worker: Worker) -> AsyncIterator[AdminServer]:
    server = worker.server()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def client(server: AdminServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
        yield client


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("status", [200, 503])
async def test_probes_answer_200_or_503_with_the_reasons(
    worker: Worker, client: aiohttp.ClientSession, path: str, status: int
) -> None:
    is_well = status == 200
    verdict = (is_well, {"database": "unreachable"})
    other = (not is_well, {})
    worker.live, worker.ready = (verdict, other) if path == "/livez" else (other, verdict)
    async with client.get(path) as response:
        assert response.status == status
        assert await response.json() == {"ok": is_well, "database": "unreachable"}
        assert response.headers["Cache-Control"] == "no-store"


async def test_metrics_are_served_as_prometheus_text(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await response.read() == b"# TYPE x counter\nx_total 1.0\n"


async def test_the_state_is_json_whatever_it_holds(
    worker: Worker, client: aiohttp.ClientSession
) -> None:
    worker.state = {"offset": 12, "owner": object, "partitions": {"documents/0": [1, None]}}
    async with client.get("/state") as response:
        assert response.content_type == "application/json"
        state = await response.json()
    assert state["partitions"] == {"documents/0": [1, None]}
    assert state["owner"] == str(object)


async def test_an_autoscaler_is_told_how_many_workers_there_should_be(
    client: aiohttp.ClientSession,
) -> None:
    async with client.get("/scale") as response:
        assert response.status == 200
        assert await response.json() == {"replicas": 3, "reason": "lag"}


async def test_an_autoscaler_is_told_that_nobody_knows(
    worker: Worker, client: aiohttp.ClientSession
) -> None:
    worker.scale = StoreUnavailable("the database does not answer")
    async with client.get("/scale") as response:
        assert response.status == 503
        assert (await response.json())["error"] == "the database does not answer"


async def test_the_front_page_links_to_the_others(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        page = await response.text()
    for path in ("/livez", "/readyz", "/metrics", "/state", "/scale"):
        assert f'href="{path}"' in page


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("POST", "/state", 405), ("DELETE", "/livez", 405)],
)
async def test_nothing_else_is_answered(
    client: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with client.request(method, path) as response:
        assert response.status == status


async def test_a_port_in_use_is_said_in_one_sentence(
    server: AdminServer, worker: Worker
) -> None:
    second = worker.server(server.port)
    with pytest.raises(ConfigError, match=r"telemetry\.admin_port") as caught:
        await second.start()
    assert str(server.port) in str(caught.value)
    assert "\n" not in str(caught.value)
    await second.close()


async def test_a_host_that_is_not_ours_is_said_in_one_sentence(worker: Worker) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await worker.server(host="192.0.2.1").start()


@pytest.mark.parametrize("has_ipv6", [True, False])
async def test_all_addresses_are_those_of_ipv4_as_well(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, *, has_ipv6: bool
) -> None:
    has_ipv6 = has_ipv6 and socket.has_dualstack_ipv6()
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: has_ipv6)
    server = worker.server(host="::")
    await server.start()
    for address in ("127.0.0.1", *(["[::1]"] if has_ipv6 else [])):
        url = f"http://{address}:{server.port}/livez"
        async with aiohttp.request("GET", url) as response:
            assert response.status == 200
    await server.close()


async def test_starting_and_closing_twice_is_safe(worker: Worker) -> None:
    server = worker.server()
    assert server.port == 0
    await server.start()
    port = server.port
    await server.start()
    assert server.port == port > 0
    await server.close()
    await server.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    await server.start()
    assert server.port == port
    await server.close()
