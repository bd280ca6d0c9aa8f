"""
The tools that check what users deploy: where they are, what they say, and as servers.

Each is named by a variable, `EMBEDFLEET_TEST_` (which a worker that is started here overlooks)
and its name in capitals, or found on PATH. None is installed by us.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.support.watching import ROOT
from tests.support.worker_process import LOOK_SECONDS, PATIENCE_SECONDS

_SAID_CHARACTERS = 120
_LOGGED_CHARACTERS = 2000
_STOP_SECONDS = 10


def find(name: str) -> str | None:
    """Return the path of a tool, None where there is none."""
    variable = "EMBEDFLEET_TEST_" + name.upper().replace("-", "_")
    return shutil.which(os.environ.get(variable) or name)


def missing(*names: str) -> list[str]:
    """Return those of some tools that are not there."""
    return [name for name in names if find(name) is None]


def run(name: str, *arguments: str | Path, text: str | None = None) -> tuple[bool, str]:
    """Run a tool that is there to its end: whether it was content, and the end of its words."""
    done = _done(name, *arguments, text=text)
    return done.returncode == 0, end_of(done.stdout + done.stderr)


def output(name: str, *arguments: str | Path) -> str:
    """
    Run a tool that is there to its end, and return what it prints.

    Raises:
        CalledProcessError: it was not content; `stdout` and `stderr` say why.
    """
    done = _done(name, *arguments)
    done.check_returncode()
    return done.stdout


def end_of(said: str) -> str:
    """Return the last words of a tool, in one line."""
    return " ".join(said.replace(f"{ROOT}/", "").split())[-_SAID_CHARACTERS:]


def _done(
    name: str, *arguments: str | Path, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    tool = find(name)
    assert tool is not None
    return subprocess.run(
        [tool, *map(str, arguments)], input=text, capture_output=True, text=True, check=False
    )


@asynccontextmanager
async def serving(
    name: str, arguments: Sequence[str], log_file: Path, ready_url: str, **environment: str
) -> AsyncIterator[None]:
    """Run a tool as a server while the block runs, from when it answers."""
    tool = find(name)
    assert tool is not None
    with log_file.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            tool,
            *arguments,
            env=os.environ | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        await _ready(process, ready_url, log_file)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _logged(log_file: Path) -> str:
    return log_file.read_text(encoding="utf-8")[-_LOGGED_CHARACTERS:]


async def _ready(process: asyncio.subprocess.Process, url: str, log_file: Path) -> None:
    # Servers of our own on loopback: their certificates are made at their start.
    connector = aiohttp.TCPConnector(ssl=False)
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        aiohttp.ClientSession(connector=connector) as session,
    ):
        while True:
            if process.returncode is not None:
                raise AssertionError(f"it ended: {_logged(log_file)}")
            try:
                async with session.get(url) as answer:
                    if answer.ok:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(LOOK_SECONDS)
