"""TLS as the URL asks for it: the server must be who it says, and nothing goes in plain."""

import socket
from dataclasses import replace

import pytest

from tests.support.store_tls import tls_postgres
from tests.support.store_worlds import postgres_world
from worker.adapters.pg_client import Database
from worker.embedded.kafka_settings import Certificates
from worker.errors import ConfigError
from worker.ports import Verdict

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    found = Certificates(tmp_path_factory.mktemp("tls"))
    found.create()
    return found


@pytest.fixture
async def server(database, certificates):
    async with tls_postgres(database.url, certificates) as server:
        yield server


async def test_a_trusted_server_is_worked_with_in_tls_alone(
    database, server, certificates
) -> None:
    url = f"{server.url}?sslmode=verify-full&sslrootcert={certificates.ca_file}"
    async with postgres_world(replace(database, url=url)) as world:
        claim = await world.claim()
        assert await world.put(claim, version=1, texts=["text"]) is Verdict.APPLIED
    assert server.in_tls > 0
    assert server.in_plain == 0


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
async def test_a_server_that_another_authority_signed_is_refused(
    database, server, tmp_path, mode: str
) -> None:
    other = Certificates(tmp_path)
    other.create()
    url = f"{server.url}?sslmode={mode}&sslrootcert={other.ca_file}"
    with pytest.raises(ConfigError, match="not trusted"):
        await Database.open(replace(database, url=url))
    assert server.in_plain == 0


async def test_a_server_of_another_name_is_refused(
    database, server, certificates, monkeypatch
) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: resolve("127.0.0.1", *rest, **named)
    )
    url = server.url.replace("127.0.0.1", "database.example")
    trusting = f"sslrootcert={certificates.ca_file}"
    with pytest.raises(ConfigError, match="not trusted"):
        await Database.open(replace(database, url=f"{url}?sslmode=verify-full&{trusting}"))
    in_tls = server.in_tls
    found = await Database.open(replace(database, url=f"{url}?sslmode=verify-ca&{trusting}"))
    await found.close()
    assert server.in_tls == in_tls + 1
