"""A cluster for tests: whatever `KUBECONFIG` names. Without it, every test of this folder is left out."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cluster.support import Kubectl, Namespaces
from tests.cluster.support_processes import Installation, installing

REPOSITORY = Path(__file__).parents[2]
CRDS = REPOSITORY / "deploy" / "helm" / "llmsafespace" / "crds"
RUNTIMES = {"python": "3.11", "bash": "5.2"}  # language and version of the runtime images
HOW = (
    "tests of tests/cluster are left out, as KUBECONFIG is not set. Any cluster will do: kind, k3d, "
    "a real one; CONTRIBUTING.md says how to get one."
)
LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out where there is no cluster."""
    if os.environ.get("KUBECONFIG"):
        return
    left_out = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    items[:] = [item for item in items if item not in left_out]
    config.stash[LEFT_OUT] = len(left_out)
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say so, once."""
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} {HOW}", yellow=True)


@dataclass(frozen=True)
class Cluster:
    """The cluster under test; `host` is this machine's address as pods see it."""

    kubeconfig: str
    host: str


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    kubeconfig = os.environ["KUBECONFIG"]
    if not shutil.which("kubectl"):
        pytest.fail("KUBECONFIG is set, but there is no kubectl on the PATH")
    server = urlsplit(Kubectl(kubeconfig)("config", "view", "--minify", "-o", "jsonpath={..server}"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server.hostname or "", server.port or 443))  # sends nothing
        return Cluster(kubeconfig, probe.getsockname()[0])


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    return Kubectl(cluster.kubeconfig)


@pytest.fixture(scope="session")
def crds(kubectl: Kubectl) -> None:
    """The custom resources as the chart has them."""
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRDS))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "--filename", str(CRDS))


@pytest.fixture(scope="module")
def namespaces(kubectl: Kubectl) -> Iterator[Namespaces]:
    """Makes namespaces that are gone after the test's file."""
    made = Namespaces(kubectl)
    yield made
    made.remove_all()


class Images:
    """`images["python"]` is the name of a runtime image, or of `gateway`, `operator` and `egress`.

    Their pattern is LLMSAFESPACE_TEST_IMAGES, in which `{name}` is replaced. Without it they are those of
    `make images`, and a test is skipped when no node has the one that it asks for.
    """

    def __init__(self, kubectl: Kubectl) -> None:
        self._pattern = os.environ.get("LLMSAFESPACE_TEST_IMAGES", "")
        nodes = kubectl.json("get", "nodes")["items"]
        images = [image for node in nodes for image in node["status"].get("images", [])]
        self._there = {name for image in images for name in image.get("names") or ()}

    def __getitem__(self, name: str) -> str:
        if self._pattern:
            return self._pattern.format(name=name)
        image = f"localhost/llmsafespace-{name}:dev"
        if image not in self._there:
            pytest.skip(f"no node of the cluster has the image {image}; `make images` builds it")
        return image


@pytest.fixture(scope="session")
def images(kubectl: Kubectl) -> Images:
    return Images(kubectl)


@pytest.fixture(scope="module")
def runtime(kubectl: Kubectl, crds: None, images: Images) -> Iterator[Callable[[str], str]]:
    """`runtime("python")` makes a RuntimeEnvironment of that language and answers how a Sandbox names it."""
    made: dict[str, str] = {}

    def make(language: str) -> str:
        version = RUNTIMES[language]
        if language not in made:
            name = f"test-{language}-{secrets.token_hex(4)}"
            spec = {"image": images[language], "language": language, "version": version}
            kubectl.apply(
                {
                    "apiVersion": "llmsafespace.dev/v1",
                    "kind": "RuntimeEnvironment",
                    "metadata": {"name": name},
                    "spec": spec,
                }
            )
            made[language] = name
        return f"{language}:{version}"

    yield make
    for name in made.values():
        kubectl("delete", "runtimeenvironments.llmsafespace.dev", name, "--ignore-not-found")


@pytest.fixture(scope="module")
def install(cluster: Cluster, kubectl: Kubectl, crds: None) -> Iterator[Callable[..., Installation]]:
    """`install(**settings)` makes an Installation whose processes and namespaces go after the test's file."""
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder, ExitStack() as stack:

        def make(**settings: Any) -> Installation:
            own = Path(folder, secrets.token_hex(4))
            return stack.enter_context(installing(own, kubectl, cluster.host, **settings))

        yield make


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Any]:
    from llmsafespace_kube.api.client import KubeClient

    made = await KubeClient.connect(user_agent="llmsafespace-tests")
    yield made
    await made.close()
