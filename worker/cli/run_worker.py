"""The command `run`: a worker, until a signal."""

from worker.cli.parameters import DEFAULTS, WithSettings


def run(*, settings: WithSettings = DEFAULTS) -> int:
    """Run a worker; its exit code is the command's."""
    from worker.app.worker import run as run_worker

    return run_worker(settings)
