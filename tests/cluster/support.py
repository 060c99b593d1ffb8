"""What the cluster tests share: kubectl, waiting, and namespaces that are surely gone afterwards."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from llmsafespace_kube.resources.kinds import SANDBOX, WARMPOD, WARMPOOL
from llmsafespace_kube.resources.names import GROUP, NAMESPACE_LABEL

T = TypeVar("T")
LIMIT = 60.0  # seconds, of whatever is awaited
PAUSE = 0.1
OURS = tuple(f"{kind.plural}.{GROUP}" for kind in (SANDBOX, WARMPOD, WARMPOOL))


class KubectlError(AssertionError):
    """kubectl failed; the message is what it wrote to stderr."""


class Kubectl:
    """`kubectl(…)` as in a shell: the arguments in, standard output out."""

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Raises KubectlError."""
        command = ["kubectl", "--kubeconfig", self._kubeconfig, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        """The answer of a command that takes `--output json`."""
        found: dict[str, Any] = json.loads(self(*arguments, "--output", "json"))
        return found

    def items(self, resource: str, namespace: str, *arguments: str) -> list[dict[str, Any]]:
        """Every object of a resource in a namespace."""
        found: list[dict[str, Any]] = self.json("get", resource, "--namespace", namespace, *arguments)[
            "items"
        ]
        return found

    def apply(self, *objects: dict[str, Any] | str, namespace: str = "") -> None:
        """Apply objects, given as they are or as YAML."""
        texts = [each if isinstance(each, str) else json.dumps(each) for each in objects]
        where = ["--namespace", namespace] if namespace else []
        self("apply", *where, "--filename", "-", stdin="\n---\n".join(texts))


class Namespaces:
    """Makes namespaces; `remove` takes one away, whatever still holds on to what is in it."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._made: list[str] = []

    def __call__(self, purpose: str, *, sandboxes: bool = False) -> str:
        """A new namespace; with `sandboxes` it is one where the admission policies hold."""
        name = f"test-{purpose}-{secrets.token_hex(4)}"
        labels = {NAMESPACE_LABEL: "true"} if sandboxes else {}
        metadata = {"name": name, "labels": labels}
        self._kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self._made.append(name)
        return name

    def remove_all(self) -> None:
        """Delete what was made and wait until it is gone. No operator need run: finalizers are taken away."""
        if not self._made:
            return
        names = [f"namespace/{name}" for name in self._made]
        self._kubectl("delete", "--ignore-not-found", "--wait=false", *names)
        for name in self._made:
            self._release(name)
        self._kubectl("wait", "--for=delete", f"--timeout={LIMIT:g}s", *names)
        self._made.clear()

    def _release(self, namespace: str) -> None:
        """Take the finalizers off what is in a namespace that is being deleted."""
        held = [
            (f"{item['kind']}.{GROUP}", item["metadata"]["name"])
            for item in self._kubectl.items(",".join(OURS), namespace)
            if "finalizers" in item["metadata"]
        ]
        for resource, name in held:
            patch = '{"metadata": {"finalizers": null}}'
            try:
                self._kubectl("patch", resource, name, "-n", namespace, "--type", "merge", "-p", patch)
            except KubectlError as error:
                if "not found" not in str(error):
                    raise


def eventually(check: Callable[[], T | None], limit: float = LIMIT, what: str = "") -> T:
    """What `check` answers as soon as that is true; an AssertionError in it means "not yet".

    Raises AssertionError with the last answer when `limit` seconds have passed.
    """
    deadline = time.monotonic() + limit
    while True:
        answer, why = _tried(check)
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {what or why}")
        time.sleep(PAUSE)


async def eventually_async(
    check: Callable[[], Awaitable[T | None]], limit: float = LIMIT, what: str = ""
) -> T:
    """The same for a check that has to be awaited."""
    deadline = time.monotonic() + limit
    while True:
        answer, why = None, ""
        try:
            answer = await check()
        except AssertionError as error:
            why = str(error)
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {what or why or repr(answer)}")
        await asyncio.sleep(PAUSE)


def _tried(check: Callable[[], T | None]) -> tuple[T | None, str]:
    try:
        answer = check()
    except AssertionError as error:
        return None, str(error)
    return answer, repr(answer)
