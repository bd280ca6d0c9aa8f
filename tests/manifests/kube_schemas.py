"""
JSON Schemas for kubeconform: of Kubernetes' own API, and of the operators' resources.

Made of what their Go modules carry, so nothing but a module proxy is asked, and once.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = "k8s.io/kubernetes@v1.37.2"
KEDA = "github.com/kedacore/keda/v2@v2.21.0"
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
_SWAGGER = "api/openapi-spec/swagger.json"
_GROUP_VERSION_KIND = "x-kubernetes-group-version-kind"
_OPEN = "x-kubernetes-preserve-unknown-fields"


def module(name: str, folder: Path) -> Path:
    """Return where a Go module's files are, after fetching it."""
    (folder / "go.mod").write_text("module schemas\n", encoding="utf-8")
    done = subprocess.run(
        ["go", "mod", "download", "-json", name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(json.loads(done.stdout)["Dir"])


def crds(folder: Path) -> list[Path]:
    """Return the files that define the operators' resources."""
    keda = module(KEDA, folder) / "config" / "crd" / "bases"
    operator = module(PROMETHEUS_OPERATOR, folder) / "example" / "prometheus-operator-crd"
    return [
        keda / "keda.sh_scaledobjects.yaml",
        operator / "monitoring.coreos.com_podmonitors.yaml",
        operator / "monitoring.coreos.com_prometheusrules.yaml",
    ]


def write(folder: Path) -> Path:
    """Write a schema a kind into a folder; returns it."""
    schemas = folder / "schemas"
    schemas.mkdir()
    swagger = module(KUBERNETES, folder) / _SWAGGER
    definitions = json.loads(swagger.read_text(encoding="utf-8"))["definitions"]
    (schemas / "_definitions.json").write_text(
        json.dumps({"definitions": {name: _strict(one) for name, one in definitions.items()}}),
        encoding="utf-8",
    )
    for name, definition in definitions.items():
        for kind in definition.get(_GROUP_VERSION_KIND, []):
            reference = {"$ref": f"_definitions.json#/definitions/{name}"}
            _write(schemas, kind["kind"], kind["group"], kind["version"], reference)
    for path in crds(folder):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            _write(schemas, spec["names"]["kind"], spec["group"], version["name"], schema)
    return schemas


def _write(schemas: Path, kind: str, group: str, version: str, schema: dict[str, Any]) -> None:
    group = group.partition(".")[0]
    name = "-".join(filter(None, (kind.lower(), group, version)))
    (schemas / f"{name}.json").write_text(json.dumps(schema), encoding="utf-8")


def _strict(schema: Any) -> Any:
    """Return a schema that knows no other fields, and JSON Schema's words for its own."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        name: _strict(one)
        for name, one in schema.items()
        if not name.startswith("x-kubernetes")
    }
    if isinstance(found.get("$ref"), str):
        found["$ref"] = found["$ref"].replace("#/definitions", "_definitions.json#/definitions")
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return {"oneOf": [{"type": "string"}, {"type": "integer"}]}
    is_open = "additionalProperties" in found or schema.get(_OPEN)
    if isinstance(found.get("properties"), dict) and not is_open:
        found["additionalProperties"] = False
    return found
