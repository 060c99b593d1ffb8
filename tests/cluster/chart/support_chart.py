"""The chart under test: rendering it, and releases of it that are surely gone afterwards."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.support import Kubectl, KubectlError, eventually

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "llmsafespace"
RESOURCES = {"cpu": "100m", "memory": "512Mi", "ephemeralStorage": "1Gi"}
Object = dict[str, Any]


class HelmError(AssertionError):
    """helm failed; the message is what it wrote to stderr."""


class Helm:
    """`helm(…)` as in a shell, with `values` as its values file."""

    def __init__(self, kubeconfig: str, home: Path, version: str) -> None:
        folders = {f"HELM_{name}_HOME": str(home) for name in ("CACHE", "CONFIG", "DATA")}
        self.kubeconfig = kubeconfig
        self._environment = {**os.environ, **folders, "KUBECONFIG": kubeconfig}
        self._version = version

    def __call__(self, *arguments: str, values: Object | None = None) -> str:
        """Raises HelmError."""
        given = [] if values is None else ["--values", "-"]
        done = subprocess.run(
            ["helm", *arguments, *given],
            input=None if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            timeout=300,
            env=self._environment,
        )
        if done.returncode != 0:
            raise HelmError(done.stderr.strip())
        return done.stdout

    def render(self, release: str = "one", namespace: str = "system", **values: Any) -> list[Object]:
        """The objects of a release with these values, without its CRDs."""
        text = self(
            "template",
            release,
            str(CHART),
            "--namespace",
            namespace,
            "--kube-version",
            self._version,
            values=values,
        )
        return [each for each in yaml.safe_load_all(text) if each]


@dataclass
class Release:
    """An installed chart with namespaces and cluster-wide names of its own."""

    helm: Helm
    kubectl: Kubectl
    name: str
    values: Object

    @property
    def system(self) -> str:
        """Where gateway, operator and egress proxy run."""
        return f"{self.name}-system"

    @property
    def sandboxes(self) -> str:
        """The one namespace of Sandboxes, of tenant `default`."""
        return f"{self.name}-sandboxes"

    @property
    def pools(self) -> str:
        """The one namespace of WarmPools."""
        return f"{self.name}-pools"

    @property
    def runtime(self) -> str:
        """What a Sandbox calls the Python of the pool."""
        return f"{self.name}-python"

    def component(self, component: str) -> str:
        """The name of a Deployment or Service of the release."""
        return f"{self.name}-llmsafespace-{component}"

    def install(self) -> None:
        """Install it; answers when its processes are ready."""
        self._helm("install", self.name, str(CHART))

    def upgrade(self, **values: Any) -> None:
        """Change values of the first level; answers when the new processes are ready."""
        self.values.update(values)
        self._helm("upgrade", self.name, str(CHART))

    def uninstall(self) -> None:
        """Take it away as people do."""
        self.helm("uninstall", self.name, "--namespace", self.system, "--wait", "--timeout", "4m")

    def _helm(self, *arguments: str) -> None:
        namespace = ("--namespace", self.system, "--skip-crds", "--wait", "--timeout", "3m")
        try:
            self.helm(*arguments, *namespace, values=self.values)
        except HelmError as error:
            raise HelmError(f"{error}\n{self.story()}") from None

    def story(self) -> str:
        """What its pods are and say, for a test that fails."""
        parts = [self.kubectl("get", "pods,warmpools", "--namespace", self.pools, "--output", "wide")]
        parts.append(self.kubectl("get", "pods", "--namespace", self.system, "--output", "wide"))
        for component in ("operator", "gateway", "egress"):
            try:
                where = ("--namespace", self.system, f"deployment/{self.component(component)}")
                parts.append(self.kubectl("logs", *where, "--tail", "40", "--all-pods"))
            except KubectlError as error:
                parts.append(str(error))
        return "\n".join(parts)

    def warm(self) -> list[Object]:
        """The WarmPods that are ready."""
        found = self.kubectl.items("warmpods", self.pools)
        return [each for each in found if each.get("status", {}).get("phase") == "Ready"]

    def await_warm(self, count: int) -> list[Object]:
        """As many WarmPods, as soon as they are ready."""
        try:
            return eventually(lambda: w if len(w := self.warm()) >= count else [], limit=90)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def admin_key(self) -> str:
        """The first admin's API key."""
        where = ("--namespace", self.system, self.component("admin-key"))
        encoded = self.kubectl.json("get", "secret", *where)["data"]["key"]
        return base64.b64decode(encoded).decode()

    @contextmanager
    def gateway_url(self) -> Iterator[str]:
        """The gateway's address on this machine, as long as its pod lives."""
        command = [
            "kubectl",
            "--kubeconfig",
            self.helm.kubeconfig,
            "port-forward",
            "--namespace",
            self.system,
        ]
        command += [f"service/{self.component('gateway')}", ":80"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            port = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert port, f"kubectl port-forward said {line!r}"
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            process.terminate()
            process.wait(10)


def own_values(name: str, pool_size: int) -> Object:
    """The values of a release that shares no object with any other, and needs little."""
    pool = {
        "runtime": f"{name}-python",
        "minSize": pool_size,
        "maxSize": pool_size + 2,
        "resources": RESOURCES,
    }
    return {
        "namespaces": {
            "sandboxes": {"agent-sandboxes": None, f"{name}-sandboxes": "default"},
            "pools": [f"{name}-pools"],
        },
        "egress": {"replicas": 1},
        "runtimes": {
            "bash": None,
            "python-3.11": None,
            f"{name}-python": {"language": "python", "version": "3.11"},
        },
        "warmPools": {"python": None, "pool": {"namespace": f"{name}-pools", "spec": pool}},
    }


@contextmanager
def releasing(
    helm: Helm, kubectl: Kubectl, name: str, image: Object, pool_size: int, values: Object
) -> Iterator[Release]:
    """An installed release `name` with one pool of Python. Nothing is left of it afterwards."""
    made = Release(helm, kubectl, name, {"image": image, **own_values(name, pool_size), **values})
    namespaces = (made.system, made.sandboxes, made.pools)
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.system, "labels": restricted}}
    )
    try:
        made.install()
        yield made
    finally:
        if helm("list", "--namespace", made.system, "--filter", name, "--all", "--short").strip():
            helm("uninstall", name, "--namespace", made.system)
        kubectl("delete", "namespace", "--ignore-not-found", *namespaces)
