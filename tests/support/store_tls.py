"""TLS in front of a PostgreSQL that was built without it."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from worker.embedded.kafka_settings import Certificates

# PostgreSQL manual, "Message Formats", SSLRequest.
SSL_REQUEST = struct.pack(">II", 8, 80_877_103)


@dataclass
class TlsPostgres:
    """Where it listens, what it must be trusted by, and what it was asked for."""

    url: str
    certificates: Certificates
    in_tls: int = 0
    in_plain: int = 0
    _upstream: tuple[str, int] = field(default=("", 0), repr=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                self.in_plain += 1
                return
            writer.write(b"S")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                self.certificates.server_certificate_file, self.certificates.server_key_file
            )
            await writer.start_tls(context)
            self.in_tls += 1
            upstream_reader, upstream = await asyncio.open_connection(*self._upstream)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(copy(reader, upstream))
                tasks.create_task(copy(upstream_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client does not like us, or has gone
        finally:
            writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def tls_postgres(url: str, certificates: Certificates) -> AsyncIterator[TlsPostgres]:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    proxy = TlsPostgres("", certificates, _upstream=(parts.hostname, parts.port or 5432))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy.url = parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()
