"""The command `health`, made for health checks of containers."""

import msgspec

from worker.cli.output import say, show, show_json
from worker.cli.parameters import DEFAULTS, Json, WithSettings
from worker.errors import ConfigError
from worker.ops.health import ask


def health(*, json: Json = False, settings: WithSettings = DEFAULTS) -> int:
    """Ask the admin port."""
    telemetry = settings.telemetry
    if not telemetry.admin_port:
        raise ConfigError("health needs telemetry.admin_port, the port the worker listens on")
    alive, answer = ask(telemetry.admin_host, telemetry.admin_port)
    if json:
        show_json({"alive": alive, "answer": _decoded(answer)})
    elif alive:
        show("alive")
    else:
        say(answer)
    return 0 if alive else 1


def _decoded(answer: str) -> object:
    try:
        return msgspec.json.decode(answer)
    except msgspec.DecodeError:
        return answer
