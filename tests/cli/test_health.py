"""What `health` makes of the answer of the admin port."""

import asyncio

import pytest

from worker.adapters.admin_http import AdminServer
from worker.ops.health import ask


async def no_advice():
    return {}


@pytest.fixture
async def admin():
    """An admin port whose verdict the test sets."""
    verdict = [True, {"partitions": 3}]
    server = AdminServer(
        "127.0.0.1",
        0,
        state=dict,
        live=lambda: tuple(verdict),
        ready=lambda: tuple(verdict),
        metrics=bytes,
        scale=no_advice,
    )
    await server.start()
    server.verdict = verdict
    yield server
    await server.close()


async def test_a_living_worker_is_exit_0(admin, embedfleet_beside):
    port = ("--telemetry.admin-port", str(admin.port))
    ended = await embedfleet_beside("health", *port)
    assert (ended.code, ended.out) == (0, "alive\n")
    ended = await embedfleet_beside("health", "--json", *port)
    assert (ended.json["alive"], ended.json["answer"]["partitions"]) == (True, 3)


async def test_a_worker_that_needs_a_restart_is_exit_1_with_its_reasons(
    admin, embedfleet_beside
):
    admin.verdict[:] = [False, {"stuck": "documents/3"}]
    port = ("--telemetry.admin-port", str(admin.port))
    ended = await embedfleet_beside("health", *port)
    assert (ended.code, ended.out) == (1, "")
    assert "documents/3" in ended.err
    ended = await embedfleet_beside("health", "--json", *port)
    assert (ended.code, ended.json["alive"]) == (1, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_a_worker_that_listens_everywhere_is_asked_on_loopback(admin, host):
    assert (await asyncio.to_thread(ask, host, admin.port)).alive


def test_where_nobody_answers_it_is_exit_1(embedfleet):
    ended = embedfleet("health", "--telemetry.admin-port", "1")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("nobody answers at 127.0.0.1:1")


@pytest.mark.parametrize("port", ["none", "0"])
def test_without_a_fixed_port_there_is_nobody_to_ask(port, embedfleet):
    ended = embedfleet("health", "--telemetry.admin-port", port)
    assert (ended.code, "needs telemetry.admin_port" in ended.err) == (2, True)
