"""
The Kubernetes manifests: the chart's templates are the source, the kustomize files are made.

The templates use a small part of Helm's language, so that they can be rendered here: values,
`toJson`, `indent`, one file, and an `if` around a whole file. `make manifests` compares what
comes of it with what Helm itself makes.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "compose" / "kubernetes"
CHART = FOLDER / "chart"
ALERTS = ROOT / "compose" / "observability" / "alerts.yaml"
RELEASE = "embedfleet"
NAMESPACE = "embedfleet"

BASE = ("configuration", "migrate", "workers", "network")
"""Templates that everybody needs."""
COMPONENTS: dict[str, dict[str, Any]] = {
    "monitoring": {"monitoring": {"enabled": True}},
    "scaling-by-advice": {"scaling": {"advice": True}},
    "scaling-by-lag": {"scaling": {"lag": True}},
}
"""Templates that need somebody else's CRDs, each with the values that switch it on."""

_EXPRESSION = re.compile(r"\{\{ ([^}]+?) \}\}")
_CONDITION = re.compile(r"\{\{- if \.Values\.([\w.]+) \}\}\n(.*)\{\{- end \}\}\n", re.DOTALL)


def values(**changes: Any) -> dict[str, Any]:
    """Return the chart's values, sections changed."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for section, changed in changes.items():
        found[section] = found[section] | changed
    return found


def rendered(name: str, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of one template."""
    text = (CHART / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    if condition := _CONDITION.fullmatch(text):
        text = condition[2] if _value(chosen, condition[1]) else ""
    shown = _EXPRESSION.sub(lambda found: _evaluated(found[1], chosen), text)
    return [one for one in yaml.safe_load_all(shown) if one is not None]


def _evaluated(expression: str, chosen: dict[str, Any]) -> str:
    subject, *pipes = expression.split(" | ")
    if subject == ".Release.Name":
        found: Any = RELEASE
    elif subject == ".Release.Namespace":
        found = NAMESPACE
    elif subject.startswith(".Values."):
        found = _value(chosen, subject.removeprefix(".Values."))
    else:
        name = re.fullmatch(r'\.Files\.Get "(.+)"', subject)
        assert name, f"not understood here: {expression}"
        found = files()[f"chart/{name[1]}"]
    for pipe in pipes:
        if pipe == "toJson":
            found = json.dumps(found)
        else:
            assert pipe == "indent 2", f"not understood here: {expression}"
            found = "\n".join("  " + line for line in found.split("\n"))
    return str(found)


def _value(chosen: dict[str, Any], path: str) -> Any:
    found: Any = chosen
    for name in path.split("."):
        found = found[name]
    return found


def files() -> dict[str, str]:
    """Return what the chart needs a copy of, as a chart reads nothing beside it."""
    return {"chart/files/alerts.yaml": ALERTS.read_text(encoding="utf-8")}


def generated() -> dict[str, Callable[[], str]]:
    """Return all files that are made, by their path in the repository."""
    made: dict[str, Callable[[], str]] = dict(_folder("base", "Kustomization", BASE, {}))
    for name, changes in COMPONENTS.items():
        made.update(_folder(f"components/{name}", "Component", (name,), changes))
    for path in files():
        made[path] = lambda path=path: files()[path]
    prefix = FOLDER.relative_to(ROOT)
    return {f"{prefix}/{path}": make for path, make in made.items()}


def _folder(
    folder: str, kind: str, names: tuple[str, ...], changes: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], str]]]:
    version = "v1beta1" if kind == "Kustomization" else "v1alpha1"
    kustomization = {
        "apiVersion": f"kustomize.config.k8s.io/{version}",
        "kind": kind,
        "resources": [f"{name}.yaml" for name in names],
    }
    yield f"{folder}/kustomization.yaml", lambda: _dumped("", [kustomization])
    for name in names:
        yield (
            f"{folder}/{name}.yaml",
            lambda name=name: _dumped(
                f"# Of chart/templates/{name}.yaml and values.yaml, by `make schemas`.\n",
                rendered(name, values(**changes)),
            ),
        )


def _dumped(header: str, objects: list[dict[str, Any]]) -> str:
    return header + yaml.safe_dump_all(objects, sort_keys=False, width=96)
