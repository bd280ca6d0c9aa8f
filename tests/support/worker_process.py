"""One worker process of a fleet: its log, its exit code, and what it says of itself."""

import asyncio
import json
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aiohttp

PATIENCE_SECONDS = 60
LOOK_SECONDS = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(eq=False)
class WorkerProcess:
    """One `embedfleet run`, its exit code and its log."""

    process: asyncio.subprocess.Process
    log_file: Path
    may_die: bool = False
    """Whether it fails nobody who waits."""
    name: str = ""

    @property
    def has_failed(self) -> bool:
        return not self.may_die and self.process.returncode not in (None, 0, -signal.SIGKILL)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def resident_bytes(self) -> int:
        """The memory that it holds now (proc(5), statm)."""
        statm = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(statm[1]) * _PAGE_BYTES

    @property
    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    async def ended(self, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        async with asyncio.timeout(timeout_seconds):
            return await self.process.wait()

    def lines(self) -> list[dict]:
        """The log so far; what is not JSON is what the test should see."""
        whole, _, _ = self.log_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line]

    def actions(self) -> Counter:
        """How often each action was logged so far."""
        return Counter(line.get("action") for line in self.lines())

    async def logged(
        self, action: str, count: int = 1, timeout_seconds: float = PATIENCE_SECONDS
    ) -> dict:
        """Wait for the first, or the n-th, log line of this action."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                found = [line for line in self.lines() if line.get("action") == action]
                if len(found) >= count:
                    return found[count - 1]
                if self.process.returncode is not None:
                    raise AssertionError(f"the worker ended: {self.log_file.read_text()}")
                await asyncio.sleep(LOOK_SECONDS)

    async def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of a path of the admin port."""
        line = await self.logged("admin_listening")
        url = f"http://127.0.0.1:{line['port']}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str) -> float:
        """The sum of all series of a counter; where metrics are on."""
        _, text = await self.ask("/metrics")
        found = re.findall(rf"^embedfleet_{name}\S* (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    async def state(self) -> dict:
        """What `/state` says now."""
        status, body = await self.ask("/state")
        assert status == 200
        return json.loads(body)

    async def shows(self, fact, timeout_seconds: float = PATIENCE_SECONDS) -> dict:
        """Wait until `fact(state)` is true, and return that state."""
        async with asyncio.timeout(timeout_seconds):
            state = await self.state()
            while not fact(state):
                await asyncio.sleep(LOOK_SECONDS)
                state = await self.state()
        return state

    async def works_on(self, partitions: int) -> dict:
        """Wait until so many partitions, and no others, are claimed and run here."""
        return await self.shows(
            lambda state: (
                [one["phase"] for one in state["partitions"]] == ["running"] * partitions
            )
        )
