"""
Bytes to lines, in constant memory, without blocking the event loop on a pipe.

A line that is longer than the limit is handed out as None and its bytes are never held. The
last line needs no line end; a byte order mark at the beginning is dropped.
"""

import asyncio
import os
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, AsyncIterable

CHUNK_BYTES = 256 * 1024


async def chunks(descriptor: int) -> AsyncGenerator[bytes, None]:
    """Yield what can be read from a file descriptor, until its end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # epoll refuses a regular file, which never keeps one waiting
        while chunk := os.read(descriptor, CHUNK_BYTES):
            yield chunk
        return
    try:
        while True:
            await readable.wait()
            readable.clear()
            if not (chunk := os.read(descriptor, CHUNK_BYTES)):
                return
            yield chunk
    finally:
        loop.remove_reader(descriptor)


async def lines(
    source: AsyncIterable[bytes], max_bytes: int
) -> AsyncGenerator[bytes | None, None]:
    """Yield the lines of a stream without their ends; None for one that is too long."""
    rest, skipping, first = b"", False, True
    async for chunk in source:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            kept = None if skipping or len(line) > max_bytes else line
            skipping = False
            yield kept.removeprefix(BOM_UTF8) if first and kept else kept
            first = False
        if len(rest) > max_bytes:
            rest, skipping = b"", True
    if skipping:
        yield None
    elif rest:
        yield rest.removeprefix(BOM_UTF8) if first else rest
