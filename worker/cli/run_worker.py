"""The command `run`: a worker, until a signal."""

from dataclasses import replace
from typing import Annotated

from worker.cli.parameters import DEFAULTS, WithSettings, switch

DebugLoop = Annotated[bool, switch("--debug-loop", "asyncio's debug mode; 20x slower tasks.")]
Tracemalloc = Annotated[bool, switch("--tracemalloc", "Log where memory grows; slow.")]


def run(
    *,
    debug_loop: DebugLoop = False,
    tracemalloc: Tracemalloc = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Run a worker; its exit code is the command's."""
    from worker.app.worker import run as run_worker

    telemetry = replace(
        settings.telemetry,
        debug_loop=debug_loop or settings.telemetry.debug_loop,
        tracemalloc=tracemalloc or settings.telemetry.tracemalloc,
    )
    return run_worker(replace(settings, telemetry=telemetry))
