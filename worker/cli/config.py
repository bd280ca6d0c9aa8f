"""The command `config`: what counts, and where it comes from."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, get_args

from worker.cli.masking import shown
from worker.cli.output import show, show_json, show_table
from worker.cli.parameters import DEFAULTS, Json, WithSettings, WithSources, switch
from worker.cli.setting_names import Setting, all_settings

Explain = Annotated[
    bool, switch("--explain", "Say what each setting means, and name its flag and variable.")
]


def config(
    *,
    explain: Explain = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
    sources: WithSources,
) -> None:
    """Show every setting with its value and its origin."""
    values = _flat(asdict(settings))
    settled = [
        (setting, masked(values[name]), sources.origins[name])
        for name, setting in all_settings().items()
    ]
    if json:
        show_json([_described(*one) for one in settled])
    elif explain:
        for one in settled:
            show("\n".join(_explained(*one)))
    else:
        rows = [(setting.name, _text(value), origin) for setting, value, origin in settled]
        show_table(("setting", "value", "origin"), rows, empty="")


def masked(value: Any) -> Any:
    """Return a value as it may be shown."""
    return shown(value) if isinstance(value, str) else value


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _described(setting: Setting, value: Any, origin: str) -> dict[str, Any]:
    return {
        "name": setting.name,
        "value": value,
        "origin": origin,
        "default": masked(setting.default),
        "flag": setting.flag,
        "variable": setting.variable,
        "description": setting.description,
    }


def _explained(setting: Setting, value: Any, origin: str) -> Iterator[str]:
    yield f"{setting.name} = {_text(value)}  ({origin})"
    kept = ", ".join(filter(None, (_type_name(setting), setting.bounds)))
    yield f"    {setting.description} [{kept}; default {_text(masked(setting.default))}]"
    yield f"    {setting.flag}  {setting.variable}"
    yield ""


def _type_name(setting: Setting) -> str:
    if setting.is_list:
        return "list"
    name: str = get_args(setting.value_type)[0].__name__
    return " | ".join(setting.choices) or name


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
