"""
Chart, kustomize base and components: rendered by the real tools, taken by a real API server.

Needs helm, kubectl, kubeconform (with go, for its schemas), etcd and kube-apiserver, as far as
they are there.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.manifests import kube_schemas, tools
from tests.support import manifests
from tests.support.servers import open_folder
from tests.support.verdicts import Verdict
from worker.embedded.ports import ReservedPort

_WHAT_NEEDS = {
    "helm": "helm is not here: lint of the chart, and what it renders",
    "kubectl": "kubectl is not here: what kustomize makes of base and components",
    "kubeconform": "kubeconform is not here: all manifests against schemas",
    "kube-apiserver": "kube-apiserver is not here: a dry run on a real API server",
    "etcd": "etcd is not here: a dry run on a real API server",
}
NOT_VERIFIED: tuple[str, ...] = (
    *(_WHAT_NEEDS[name] for name in tools.missing(*_WHAT_NEEDS)),
    "pods: no kubelet runs here, so probes, roll-outs and network policies are only described",
    "KEDA and the Prometheus operator at work: their resources are checked, not acted upon",
)
_KUBERNETES = kube_schemas.KUBERNETES.partition("@v")[2]
_RESTRICTED = ("enforce", "warn", "audit")
_FLAGS = {
    name: [f"{section}.{key}=true" for section, keys in changes.items() for key in keys]
    for name, changes in manifests.COMPONENTS.items()
}


def verdicts() -> list[Verdict]:
    """Try everything for which the tools are here."""
    with open_folder() as name:
        folder = Path(name)
        found = [*_by_helm(), *_by_kustomize(folder)]
        everything = folder / "everything.yaml"
        everything.write_text(yaml.safe_dump_all(_everything()), encoding="utf-8")
        if tools.find("kubeconform") and tools.find("go"):
            found.append(_conforms(folder, everything))
        if not tools.missing("etcd", "kube-apiserver", "kubectl"):
            found += asyncio.run(_on_a_server(folder, everything))
    return found


def _everything() -> list[dict[str, Any]]:
    """Return all objects there are; of the two ways of scaling each under its own name."""
    chosen = manifests.values()
    found = [one for name in manifests.BASE for one in manifests.rendered(name, chosen)]
    for name, changes in manifests.COMPONENTS.items():
        found += [
            one | {"metadata": one["metadata"] | {"name": f"embedfleet-{name}"}}
            for one in manifests.rendered(name, manifests.values(**changes))
        ]
    return found


def _output(*words: str | Path) -> str:
    tool = tools.find(str(words[0]))
    assert tool is not None
    return subprocess.run(
        [tool, *map(str, words[1:])], capture_output=True, text=True, check=True
    ).stdout


def _by_helm() -> Iterator[Verdict]:
    if not tools.find("helm"):
        return
    held, said = tools.run("helm", "lint", "--strict", manifests.CHART)
    yield Verdict("helm lint", said, held)
    for name, flags in {"nothing": [], **_FLAGS}.items():
        # One that was built of its module takes Kubernetes to be ancient.
        words = ["--kube-version", _KUBERNETES, "--namespace", manifests.NAMESPACE]
        words += [word for flag in flags for word in ("--set", flag)]
        shown = _output("helm", "template", manifests.RELEASE, manifests.CHART, *words)
        changes = manifests.COMPONENTS.get(name, {})
        chosen = manifests.values(**changes)
        ours = [
            one
            for template in (*manifests.BASE, *manifests.COMPONENTS)
            for one in manifests.rendered(template, chosen)
        ]
        theirs = [one for one in yaml.safe_load_all(shown) if one is not None]
        yield Verdict(
            f"helm template with {name} switched on is what the base is made of",
            f"{len(theirs)} objects",
            _sorted(theirs) == _sorted(ours),
        )


def _by_kustomize(folder: Path) -> Iterator[Verdict]:
    if not tools.find("kubectl"):
        return
    yield _kustomized("base", manifests.FOLDER / "base", manifests.BASE)
    for name in manifests.COMPONENTS:
        overlay = folder / name
        overlay.mkdir()
        paths = [manifests.FOLDER / "base", manifests.FOLDER / "components" / name]
        base, component = (os.path.relpath(path, overlay) for path in paths)
        (overlay / "kustomization.yaml").write_text(
            yaml.safe_dump({"resources": [base], "components": [component]}), encoding="utf-8"
        )
        yield _kustomized(f"base with {name}", overlay, (*manifests.BASE, name))


def _kustomized(what: str, folder: Path, names: tuple[str, ...]) -> Verdict:
    shown = _output("kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", folder)
    found = [one for one in yaml.safe_load_all(shown) if one is not None]
    wanted = [
        one
        for name in names
        for one in manifests.rendered(
            name, manifests.values(**manifests.COMPONENTS.get(name, {}))
        )
    ]
    held = _sorted(found) == _sorted(wanted)
    return Verdict(f"kustomize: {what}", f"{len(found)} objects", held)


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
        kubectl = ("kubectl", "--kubeconfig", configuration)
        if tools.find("go"):
            for path in kube_schemas.crds(folder):
                await asyncio.to_thread(_output, *kubectl, "apply", "--server-side", "-f", path)
        await asyncio.to_thread(_output, *kubectl, "create", "namespace", manifests.NAMESPACE)
        labels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in _RESTRICTED]
        await asyncio.to_thread(
            _output, *kubectl, "label", "namespace", manifests.NAMESPACE, *labels
        )
        done = await asyncio.to_thread(
            subprocess.run,
            [
                tools.find("kubectl") or "",
                *map(str, kubectl[1:]),
                *(
                    "--namespace",
                    manifests.NAMESPACE,
                    "apply",
                    "--server-side",
                    "--dry-run=server",
                ),
                *("-f", str(everything)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stdout + done.stderr
    count = said.count("serverside-applied (server dry run)")
    return [
        Verdict(
            "a real API server takes all of it",
            f"{count} objects" if done.returncode == 0 else said[-300:],
            done.returncode == 0 and count == len(_everything()),
        ),
        # A Deployment that breaks the standard is not refused, its author is warned.
        Verdict(
            "and has no warning: pods are restricted",
            next((line for line in said.splitlines() if "Warning" in line), "none"),
            "Warning" not in said,
        ),
    ]


@asynccontextmanager
async def _api_server(folder: Path) -> AsyncIterator[Path]:
    """Run etcd and an API server; yields the configuration for kubectl."""
    reserved = [ReservedPort() for _ in range(3)]
    store, peer, port = (one.number for one in reserved)
    for one in reserved:
        one.release()
    key = folder / "sa.key"
    await asyncio.to_thread(_output, "openssl", "genrsa", "-out", key, "2048")
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
