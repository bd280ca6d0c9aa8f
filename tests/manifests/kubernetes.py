"""
Chart, kustomize base and components: rendered by the real tools, taken by a real API server.

Needs helm, kubectl, kubeconform (with go, for its schemas), etcd and kube-apiserver, as far as
they are there.
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.manifests import kube_schemas, tools
from tests.support import manifests
from tests.support.servers import open_folder
from tests.support.verdicts import Verdict
from tests.support.watching import ROOT
from worker.embedded.ports import ReservedPort

_WHAT_NEEDS = {
    "helm": "helm is not here: lint of the chart, and what it renders",
    "kubectl": "kubectl is not here: what kustomize makes of base and components",
    "kubeconform": "kubeconform is not here: all manifests against schemas",
    "go": "go is not here, which fetches the schemas of KEDA and of the Prometheus operator",
    "kube-apiserver": "kube-apiserver is not here: a dry run on a real API server",
    "etcd": "etcd is not here: a dry run on a real API server",
    "openssl": "openssl is not here, with which an API server is given a key",
}
NOT_VERIFIED: tuple[str, ...] = (
    *(_WHAT_NEEDS[name] for name in tools.missing(*_WHAT_NEEDS)),
    "pods: no kubelet runs here, so probes, roll-outs and network policies are only described",
    "KEDA and the Prometheus operator at work: their resources are checked, not acted upon",
)
_KUBERNETES = kube_schemas.KUBERNETES.partition("@v")[2]
_RESTRICTED = ("enforce", "warn", "audit")
_NAMED = {"ConfigMap", "Deployment", "Job"}
_FLAGS = {
    name: [
        f"{section}.{key}={json.dumps(value)}"
        for section, keys in changes.items()
        for key, value in keys.items()
    ]
    for name, changes in manifests.COMPONENTS.items()
}

Finding = tuple[str, bool]
"""What was seen, and whether it is as claimed."""


def verdicts() -> list[Verdict]:
    """Try everything for which the tools are here."""
    with open_folder() as name:
        folder = Path(name)
        found = [*_by_helm(), *_by_kustomize(folder)]
        everything = folder / "everything.yaml"
        everything.write_text(yaml.safe_dump_all(_everything()), encoding="utf-8")
        if not tools.missing("kubeconform", "go"):
            found.append(_conforms(folder, everything))
        if not tools.missing("etcd", "kube-apiserver", "kubectl", "go", "openssl"):
            found += asyncio.run(_on_a_server(folder, everything))
    return found


def _tried(claim: str, attempt: Callable[[], Finding]) -> Verdict:
    try:
        seen, held = attempt()
    except subprocess.CalledProcessError as error:
        seen, held = tools.end_of(error.stdout + error.stderr), False
    return Verdict(claim, seen, held)


def _everything() -> list[dict[str, Any]]:
    """Return all objects there are; of the two ways of scaling each under its own name."""
    found = _rendered(manifests.BASE, manifests.values())
    for name, changes in manifests.COMPONENTS.items():
        found += [
            one | {"metadata": one["metadata"] | {"name": f"embedfleet-{name}"}}
            for one in manifests.rendered(name, manifests.values(**changes))
        ]
    return found


def _by_helm() -> Iterator[Verdict]:
    if not tools.find("helm"):
        return
    held, said = tools.run("helm", "lint", "--strict", manifests.CHART)
    yield Verdict("helm lint", said, held)
    for name, flags in {"nothing": [], **_FLAGS}.items():
        yield _tried(
            f"helm template with {name} switched on is what the base is made of",
            partial(_templated, manifests.COMPONENTS.get(name, {}), flags),
        )


def _templated(changes: dict[str, Any], flags: list[str]) -> Finding:
    # One that was built of its module takes Kubernetes to be ancient.
    words = ["--kube-version", _KUBERNETES, "--namespace", manifests.NAMESPACE]
    shown = tools.output(
        *("helm", "template", manifests.RELEASE, manifests.CHART, *words, *_set(flags))
    )
    names = (*manifests.BASE, *manifests.COMPONENTS)
    return _compared(_loaded(shown), _rendered(names, manifests.values(**changes)))


def _set(flags: list[str]) -> list[str]:
    return [word for flag in flags for word in ("--set-json", flag)]


def _loaded(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one is not None]


def _rendered(names: Iterable[str], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for name in names for one in manifests.rendered(name, chosen)]


def _compared(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> Finding:
    return f"{len(found)} objects", _sorted(found) == _sorted(wanted)


def _by_kustomize(folder: Path) -> Iterator[Verdict]:
    if not tools.find("kubectl"):
        return
    yield _tried("kustomize: base", partial(_kustomized, manifests.FOLDER / "base", ()))
    for name in manifests.COMPONENTS:
        overlay = _overlay(folder / name, {"components": [_beside(folder / name, name)]})
        yield _tried(f"kustomize: base with {name}", partial(_kustomized, overlay, (name,)))
    yield _tried(
        "kustomize: the README's overlay, its settings by a new name in all pods",
        partial(_named_anew, _from_readme(folder / "search")),
    )


def _from_readme(folder: Path) -> Path:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n# kustomization\.yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(found[1], encoding="utf-8")
    (folder / "embedfleet").symlink_to(ROOT)
    return folder


def _overlay(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir()
    base = os.path.relpath(manifests.FOLDER / "base", folder)
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [base], **content}), encoding="utf-8"
    )
    return folder


def _beside(folder: Path, component: str) -> str:
    return os.path.relpath(manifests.FOLDER / "components" / component, folder)


def _kustomize(folder: Path) -> list[dict[str, Any]]:
    return _loaded(
        tools.output("kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", folder)
    )


def _kustomized(folder: Path, names: tuple[str, ...]) -> Finding:
    changes = {
        section: value
        for name in names
        for section, value in manifests.COMPONENTS[name].items()
    }
    wanted = _rendered((*manifests.BASE, *names), manifests.values(**changes))
    found = manifests.for_kustomize(_kustomize(folder))
    return _compared(found, manifests.for_kustomize(wanted))


def _named_anew(overlay: Path) -> Finding:
    before, after = (
        {one["metadata"]["name"]: one for one in _kustomize(folder) if one["kind"] in _NAMED}
        for folder in (manifests.FOLDER / "base", overlay)
    )
    (old,), (new,) = (
        [name for name, one in found.items() if one["kind"] == "ConfigMap"]
        for found in (before, after)
    )
    used = [
        container["envFrom"][0]["configMapRef"]["name"]
        for one in after.values()
        if one["kind"] != "ConfigMap"
        for container in one["spec"]["template"]["spec"]["containers"]
    ]
    servers = after[new]["data"]["EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS"]
    kept = len(after[new]["data"]) == len(before[old]["data"])
    held = new != old and used == [new, new] and servers == "kafka.kafka:9092" and kept
    return f"{new}, in {len(used)} pods", held


def _sorted(objects: list[dict[str, Any]]) -> list[str]:
    return sorted(yaml.safe_dump(one, sort_keys=True) for one in objects)


def _conforms(folder: Path, everything: Path) -> Verdict:
    place = kube_schemas.write(folder) / "{{.ResourceKind}}{{.KindSuffix}}.json"
    held, said = tools.run(
        "kubeconform", "-strict", "-summary", "-schema-location", str(place), everything
    )
    return Verdict("kubeconform, with KEDA's and the operator's schemas", said, held)


async def _on_a_server(folder: Path, everything: Path) -> list[Verdict]:
    async with _api_server(folder) as configuration:
        return await asyncio.to_thread(_served, folder, everything, configuration)


def _served(folder: Path, everything: Path, configuration: Path) -> list[Verdict]:
    kubectl = ("kubectl", "--kubeconfig", configuration)
    for path in kube_schemas.crds(folder):
        tools.output(*kubectl, "apply", "--server-side", "-f", path)
    tools.output(*kubectl, "create", "namespace", manifests.NAMESPACE)
    labels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in _RESTRICTED]
    tools.output(*kubectl, "label", "namespace", manifests.NAMESPACE, *labels)
    claim = "a real API server takes all of it, pods as restricted, without a warning"
    found = [_tried(claim, partial(_taken, kubectl, everything))]
    if tools.find("helm"):
        found.append(
            _tried(
                "helm: an upgrade leaves the size of the fleet to who scales it, "
                "another setting is other pods",
                partial(_upgraded, kubectl, configuration),
            )
        )
    return found


def _taken(kubectl: tuple[str | Path, ...], everything: Path) -> Finding:
    said = tools.output(
        *(*kubectl, "--namespace", manifests.NAMESPACE, "apply", "--server-side"),
        # A Deployment that breaks the standard is not refused, its author is warned.
        *("--dry-run=server", "--warnings-as-errors", "-f", everything),
    )
    count = said.count("serverside-applied (server dry run)")
    return f"{count} objects", count == len(_everything())


def _upgraded(kubectl: tuple[str | Path, ...], configuration: Path) -> Finding:
    """Install, scale as an autoscaler does, upgrade; nobody runs the Jobs of hooks here."""
    place = ("--namespace", manifests.NAMESPACE)
    helm = ("--kubeconfig", configuration, *place, manifests.RELEASE, manifests.CHART)
    chosen = ("--no-hooks", *_set(_FLAGS["scaling-by-advice"]))
    workers = f"deployment/{manifests.RELEASE}"
    tools.output("helm", "install", *helm, *chosen)
    before = json.loads(tools.output(*kubectl, *place, "get", workers, "--output=json"))
    tools.output(*kubectl, *place, "scale", workers, "--replicas=7")
    other = "settings.EMBEDFLEET_KAFKA_TOPICS=others"
    tools.output("helm", "upgrade", *helm, *chosen, "--set", other)
    after = json.loads(tools.output(*kubectl, *place, "get", workers, "--output=json"))
    replicas = after["spec"]["replicas"]
    is_new = after["spec"]["template"] != before["spec"]["template"]
    return f"{replicas} workers, new pods: {is_new}", replicas == 7 and is_new


@asynccontextmanager
async def _api_server(folder: Path) -> AsyncIterator[Path]:
    """Run etcd and an API server; yields the configuration for kubectl."""
    reserved = [ReservedPort() for _ in range(3)]
    store, peer, port = (one.number for one in reserved)
    for one in reserved:
        one.release()
    key = folder / "sa.key"
    await asyncio.to_thread(tools.output, "openssl", "genrsa", "-out", key, "2048")
    tokens = folder / "tokens.csv"
    tokens.write_text('operator,admin,1,"system:masters"\n', encoding="utf-8")
    configuration = folder / "kubeconfig"
    configuration.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [
                    {
                        "name": "here",
                        "cluster": {
                            "server": f"https://127.0.0.1:{port}",
                            "insecure-skip-tls-verify": True,
                        },
                    }
                ],
                "users": [{"name": "operator", "user": {"token": "operator"}}],
                "contexts": [
                    {"name": "here", "context": {"cluster": "here", "user": "operator"}}
                ],
            }
        ),
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{store}"
    etcd = [
        *("--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
        *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
        *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
    ]
    server = [
        *(f"--etcd-servers={url}", f"--secure-port={port}", "--bind-address=127.0.0.1"),
        *(f"--cert-dir={folder / 'certificates'}", f"--token-auth-file={tokens}"),
        *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc",
        *("--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"),
        *("--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"),
    ]
    ready = f"https://127.0.0.1:{port}/readyz"
    async with (
        tools.serving("etcd", etcd, folder / "etcd.log", f"{url}/health"),
        tools.serving("kube-apiserver", server, folder / "server.log", ready),
    ):
        yield configuration
