"""
Finds out why a broker cannot be used: TCP, then TLS, then a log-in and a request.

The client itself says "unable to bootstrap" whatever the reason is. Asks every bootstrap server
by itself and stops at its first step that fails. Never prints a secret.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from aiokafka import errors
from aiokafka.conn import create_conn, get_ip_port_afi
from aiokafka.protocol.metadata import MetadataRequest

from worker.adapters.kafka_client import (
    bootstrap_servers,
    client_arguments,
    milliseconds,
    tls_context,
    uses_tls,
)
from worker.config import KafkaOptions
from worker.errors import ConfigError

_STEP_SECONDS = 5.0
_DEFAULT_PORT = 9092


class Step(NamedTuple):
    """One step of a probe: what was tried, whether it worked, what to make of it."""

    step: str
    ok: bool
    detail: str


class _Failed(Exception):
    """A step did not work; the message says why."""


async def probe(options: KafkaOptions) -> list[Step]:
    """Try each bootstrap server step by step; returns what was found out, in order."""
    try:
        arguments = client_arguments(options)
    except ConfigError as error:
        return [Step("configuration", ok=False, detail=str(error))]
    steps: list[Step] = []
    for server in bootstrap_servers(options):
        steps += await _probe_server(options, server, arguments)
    return steps


async def _probe_server(
    options: KafkaOptions, server: str, arguments: dict[str, Any]
) -> list[Step]:
    host, port, _ = get_ip_port_afi(server)
    address = (host, port if port > 0 else _DEFAULT_PORT)
    tries: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("TCP", partial(_try_tcp, *address))
    ]
    if uses_tls(options):
        tries.append(("TLS", partial(_try_tls, *address, tls_context(options))))
    name = "SASL" if options.security_protocol.startswith("SASL") else "request"
    tries.append((name, partial(_try_kafka, *address, options, arguments)))
    steps: list[Step] = []
    for step, attempt in tries:
        try:
            steps.append(Step(f"{server} {step}", ok=True, detail=await attempt()))
        except _Failed as error:
            steps.append(Step(f"{server} {step}", ok=False, detail=str(error)))
            break
    return steps


async def _try_tcp(host: str, port: int) -> str:
    try:
        await _connect(host, port, None)
    except TimeoutError as error:
        raise _Failed(f"no answer within {_STEP_SECONDS:g} s: a firewall?") from error
    except OSError as error:
        raise _Failed(f"nobody listens there: {error}") from error
    return "connected"


async def _try_tls(host: str, port: int, context: ssl.SSLContext) -> str:
    try:
        return await _connect(host, port, context)
    except ssl.SSLCertVerificationError as error:
        raise _Failed(
            f"the broker's certificate is not accepted: {error.verify_message}; "
            "see kafka.tls_ca_file"
        ) from error
    except (OSError, EOFError) as error:
        raise _Failed(
            f"no TLS there ({_name(error)}): is the port one for plain text?"
        ) from error


async def _try_kafka(
    host: str, port: int, options: KafkaOptions, arguments: dict[str, Any]
) -> str:
    wanted = ("client_id", "security_protocol", "ssl_context")
    own = {
        name: value
        for name, value in arguments.items()
        if name in wanted or name.startswith("sasl_")
    }
    try:
        connection = await create_conn(
            host, port, request_timeout_ms=milliseconds(_STEP_SECONDS), **own
        )
        try:
            await connection.send(MetadataRequest([]))
        finally:
            await asyncio.wait({connection.close()}, timeout=_STEP_SECONDS)
    except errors.SaslAuthenticationFailed as error:
        raise _Failed(f"the broker refuses the log-in: {error}") from error
    except errors.UnsupportedSaslMechanismError as error:
        raise _Failed(f"the broker does not offer {options.sasl_mechanism}") from error
    except errors.IllegalSaslStateError as error:
        raise _Failed("the listener wants no log-in: is it one without SASL?") from error
    except (errors.KafkaError, OSError) as error:
        raise _Failed(await _why_closed(host, port, options, error)) from error
    return f"answered as {options.security_protocol}"


async def _why_closed(host: str, port: int, options: KafkaOptions, error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return f"the broker ended TLS ({_name(cause)}): does it want a client certificate?"
    if not uses_tls(options) and await _speaks_tls(host, port):
        return "the port speaks TLS: set kafka.security_protocol to SSL or SASL_SSL"
    if not options.security_protocol.startswith("SASL"):
        return f"it closed the connection ({_name(error)}): does it want a log-in (SASL)?"
    return f"it closed the connection: {_name(error)}"


async def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether it answers; nothing is sent
    try:
        await _connect(host, port, context)
    except ssl.SSLError as error:
        return "CERTIFICATE" in str(error.reason)
    except (OSError, EOFError):
        return False
    return True


async def _connect(host: str, port: int, context: ssl.SSLContext | None) -> str:
    """Connect, shake hands and close; returns the version of TLS."""
    async with asyncio.timeout(_STEP_SECONDS):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        version = "" if tls is None else str(tls.version())
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return version


def _name(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
