"""
The Kubernetes manifests: the chart's templates are the source, the kustomize files are made.

The templates use a small part of Helm's language, so that they can be rendered here: values,
`toJson`, `sha256sum`, `indent`, one file, `if` and `range`. `make manifests` compares what
comes of it with what Helm itself makes.

Kustomize has ways of its own for what Helm's hooks and checksums do: the base generates its
ConfigMap, which has a new name with each change of a setting.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.watching import ALERTS, ROOT

FOLDER = ROOT / "compose" / "kubernetes"
CHART = FOLDER / "chart"
COPIES = {"files/alerts.yaml": ALERTS}
"""What the chart has a copy of, as it reads nothing beside it."""
RELEASE = "embedfleet"
NAMESPACE = "embedfleet"

BASE = ("configuration", "migrate", "workers", "network")
"""Templates that everybody needs."""
COMPONENTS: dict[str, dict[str, Any]] = {
    "monitoring": {"monitoring": {"enabled": True}},
    "scaling-by-advice": {"scaling": {"by": "advice"}},
    "scaling-by-lag": {"scaling": {"by": "lag"}},
}
"""Templates that need somebody else's CRDs, each with the values that switch it on."""

_EXPRESSION = re.compile(r"\{\{ ([^}]+?) \}\}")
_BLOCK = re.compile(r"\s*\{\{- (if|range) (.+?) \}\}(.*?)\s*\{\{- end \}\}", re.DOTALL)
_CONDITION = re.compile(r'(eq )?\.Values\.([\w.]+)(?: "(\w+)")?')
_FROM_HELM = ("helm.sh/", "embedfleet/settings")
_HASH = re.compile(rf"\b{RELEASE}-[a-z0-9]{{10}}$")


def values(**changes: Any) -> dict[str, Any]:
    """Return the chart's values, sections changed."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for section, changed in changes.items():
        found[section] = found[section] | changed
    return found


def rendered(name: str, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of one template."""
    text = (CHART / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    text = _BLOCK.sub(lambda found: _block(found[1], found[2], found[3], chosen), text)
    shown = _EXPRESSION.sub(lambda found: _evaluated(found[1], chosen), text)
    return [one for one in yaml.safe_load_all(shown) if one is not None]


def _block(kind: str, subject: str, body: str, chosen: dict[str, Any]) -> str:
    if kind == "if":
        found = _CONDITION.fullmatch(subject)
        assert found, f"not understood here: {subject}"
        value = _value(chosen, found[2])
        return body if (value == found[3] if found[1] else value) else ""
    over = _value(chosen, subject.removeprefix("$name, $value := .Values."))
    items = sorted(over.items()) if isinstance(over, dict) else enumerate(over)
    return "".join(
        body.replace("{{ $name }}", str(name)).replace(
            "{{ $value | toJson }}", json.dumps(value)
        )
        for name, value in items
    )


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
        found = COPIES[name[1]].read_text(encoding="utf-8")
    for pipe in pipes:
        if pipe == "toJson":
            found = json.dumps(found, sort_keys=True, separators=(",", ":"))
        elif pipe == "sha256sum":
            found = hashlib.sha256(found.encode()).hexdigest()
        else:
            assert pipe == "indent 2", f"not understood here: {expression}"
            found = "\n".join("  " + line for line in found.split("\n"))
    return str(found)


def _value(chosen: dict[str, Any], path: str) -> Any:
    found: Any = chosen
    for name in path.split("."):
        found = found[name]
    return found


def for_kustomize(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Return objects as the base has them: without what is Helm's, one ConfigMap for all.

    What kustomize itself makes of the base, names with hashes, comes to the same.
    """
    found = [_without_helm(one) for one in objects]
    return [
        one
        for one in found
        if one["metadata"]["name"] != f"{RELEASE}-migrate" or one["kind"] != "ConfigMap"
    ]


def _without_helm(one: Any) -> Any:
    if isinstance(one, list):
        return [_without_helm(each) for each in one]
    if not isinstance(one, dict):
        return _HASH.sub(RELEASE, one) if isinstance(one, str) else one
    found = {
        name: _without_helm(each)
        for name, each in one.items()
        if not name.startswith(_FROM_HELM)
    }
    if found.get("annotations") == {}:
        del found["annotations"]
    if reference := found.get("configMapRef"):
        reference["name"] = RELEASE
    return found


def generated() -> dict[str, str]:
    """Return all files that are made, by their path in the repository."""
    made = {
        **dict(_base()),
        **{path: text for name in COMPONENTS for path, text in _component(name)},
        **{f"chart/{path}": one.read_text(encoding="utf-8") for path, one in COPIES.items()},
    }
    prefix = FOLDER.relative_to(ROOT)
    return {f"{prefix}/{path}": text for path, text in made.items()}


def _base() -> Iterator[tuple[str, str]]:
    generator = {
        "name": RELEASE,
        "envs": ["settings.env"],
        "options": {"labels": rendered("configuration", values())[0]["metadata"]["labels"]},
    }
    names = [name for name in BASE if name != "configuration"]
    yield _kustomization("base", "Kustomization", names, {"configMapGenerator": [generator]})
    settings = (f"{name}={value}\n" for name, value in values()["settings"].items())
    yield "base/settings.env", "".join([_SOURCE.format("values.yaml"), *settings])
    for name in names:
        yield _objects("base", name, values())


def _component(component: str) -> Iterator[tuple[str, str]]:
    chosen = values(**COMPONENTS[component])
    extra: dict[str, Any] = {}
    if chosen["scaling"]["by"] != "nothing":
        # Whoever scales says how many workers there are; it is not set back at each `apply`.
        extra["patches"] = [{"target": {"kind": "Deployment"}, "patch": _NO_REPLICAS}]
    folder = f"components/{component}"
    yield _kustomization(folder, "Component", [component], extra)
    yield _objects(folder, component, chosen)


_NO_REPLICAS = json.dumps([{"op": "remove", "path": "/spec/replicas"}])
_SOURCE = "# Of the chart's {}, by `make schemas`.\n"


def _kustomization(
    folder: str, kind: str, names: list[str], extra: dict[str, Any]
) -> tuple[str, str]:
    version = "v1beta1" if kind == "Kustomization" else "v1alpha1"
    kustomization = {
        "apiVersion": f"kustomize.config.k8s.io/{version}",
        "kind": kind,
        "resources": [f"{name}.yaml" for name in names],
        **extra,
    }
    return f"{folder}/kustomization.yaml", _dumped("", [kustomization])


def _objects(folder: str, name: str, chosen: dict[str, Any]) -> tuple[str, str]:
    header = _SOURCE.format(f"templates/{name}.yaml and values.yaml")
    return f"{folder}/{name}.yaml", _dumped(header, for_kustomize(rendered(name, chosen)))


def _dumped(header: str, objects: list[dict[str, Any]]) -> str:
    return header + yaml.safe_dump_all(objects, sort_keys=False, width=96)
