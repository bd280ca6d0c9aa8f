"""The command `demo`."""

import asyncio
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

from worker.cli.interrupts import end_as_by_an_interrupt
from worker.cli.parameters import option, switch

DataDir = Annotated[Path | None, option("Keep the data in this folder.")]
KeepRunning = Annotated[
    bool, switch("--keep-running", "Leave everything up at the end, until Ctrl-C.")
]
Kafka = Annotated[str | None, option("host:port of a broker that is running already.")]
Jars = Annotated[Path | None, option("A folder with Kafka's jars, instead of fetching them.")]


def demo(
    *,
    data_dir: DataDir = None,
    keep_running: KeepRunning = False,
    jars: Jars = None,
    kafka: Kafka = None,
) -> int:
    """Run the demonstration; its exit code is the command's."""
    from worker.app.demo import DemoOptions
    from worker.app.demo import demo as run_demo
    from worker.cli.dead_letter_output import explained

    # Ctrl-C itself never is ignored, though a shell starts what it sends to its background so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_as_by_an_interrupt(signal.SIGTERM, signal.SIGHUP)
    options = DemoOptions(data_dir=data_dir, keep_running=keep_running, jars=jars, kafka=kafka)
    return asyncio.run(run_demo(options, partial(explained, value=False)))
