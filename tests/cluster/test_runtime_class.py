"""The security level `high` through a profile with a RuntimeClass: sandboxes on a kernel of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from llmsafespace import Sandbox
from llmsafespace.errors import RuntimeUnavailable
from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import Sandboxes, condition, manifest

GVISOR = "gvisor"
PROFILE = "sandboxprofiles.llmsafespace.dev"
RESOURCES = {"cpu": "500m", "memory": "512Mi", "ephemeralStorage": "256Mi"}
START_LIMIT = 120.0  # seconds; gVisor starts slowly
# The kernel's log, as dmesg shows it: gVisor shows its own to everybody, Linux the node's to nobody here.
KERNEL_LOG = """
import ctypes
log = ctypes.create_string_buffer(1 << 16)
print(ctypes.CDLL(None).klogctl(3, log, len(log)) > 0, log.value.decode())
"""
OWN_STATUS = """
for line in open("/proc/self/status"):
    if line.startswith(("NoNewPrivs", "Seccomp:")):
        print(line, end="")
"""
PLOT = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3])
plt.show()
"""


@pytest.fixture(scope="module")
def installation(
    install: Callable[..., Installation], runtime: Callable[[str], str], kubectl: Kubectl
) -> Installation:
    """One whose level `high` is gVisor, and whose level `custom` is a RuntimeClass that does not exist."""
    runtime("python")
    made = install()
    for name, runtime_class in (("high", GVISOR), ("custom", "no-such-class")):
        spec = {"securityLevel": name, "runtimeClassName": runtime_class}
        kubectl.apply(manifest("SandboxProfile", name, spec), namespace=made.system)
    made.operator()
    return made


@pytest.fixture(scope="module")
def start(installation: Installation) -> Callable[..., Sandbox]:
    """`start(level)`: a sandbox of the SDK."""
    gateway = installation.gateway()
    key = gateway.key("ada")

    def make(level: str, *, warm: bool) -> Sandbox:
        return Sandbox(
            "python:3.11",
            key,
            security_level=level,
            resources=RESOURCES,
            api_url=gateway.url,
            use_warm_pool=warm,
        )

    return make


@pytest.fixture(scope="module")
def gvisor(kubectl: Kubectl) -> None:
    names = [each["metadata"]["name"] for each in kubectl.json("get", "runtimeclasses")["items"]]
    if GVISOR not in names:
        pytest.skip(f"the cluster has no RuntimeClass {GVISOR}")


@pytest.fixture(scope="module")
def pool(gvisor: None, installation: Installation, kubectl: Kubectl) -> str:
    spec = {"runtime": "python:3.11", "minSize": 1, "securityLevel": "high", "resources": RESOURCES}
    kubectl.apply(manifest("WarmPool", "strong", spec), namespace=installation.pools)
    return "strong"


@pytest.fixture(scope="module", params=["warm", "cold"])
def strong(
    request: pytest.FixtureRequest,
    pool: str,
    start: Callable[..., Sandbox],
    installation: Installation,
    kubectl: Kubectl,
) -> Iterator[Sandbox]:
    """A sandbox of level `high`, from the pool and without it."""
    objects = Sandboxes(installation, kubectl)
    eventually(lambda: objects.ready(pool), START_LIMIT, "a warm pod under gVisor")
    with start("high", warm=request.param == "warm") as made:
        assert made.start.kind == request.param, made.start
        yield made


def test_its_kernel_is_gvisors(strong: Sandbox, kubectl: Kubectl) -> None:
    log = strong.run_code(KERNEL_LOG).stdout
    assert log.startswith("True"), log
    assert "Starting gVisor" in log
    release = strong.run_code("import platform; print(platform.release())").stdout.strip()
    nodes = kubectl.json("get", "nodes")["items"]
    assert release
    assert release not in [each["status"]["nodeInfo"]["kernelVersion"] for each in nodes]


def test_its_isolation_says_so(strong: Sandbox) -> None:
    told = strong.status().isolation
    assert (told["securityLevel"], told["profile"]) == ("high", "high")
    assert (told["runtimeClassName"], told["kernel"]) == (GVISOR, "its runtime class's")
    here = dict(line.split(":\t") for line in strong.run_code(OWN_STATUS).stdout.splitlines())
    assert told["noNewPrivileges"] is (here["NoNewPrivs"] == "1")
    assert told["seccomp"] == ("RuntimeDefault" if here["Seccomp"] == "2" else "its runtime class's")


def test_its_memory_is_its_own_to_use(strong: Sandbox) -> None:
    """gVisor counts what processes share for each: that must not look as if the limit were reached."""
    done = strong.run_code(
        "import time; x = bytearray(b'x') * (330 << 20); time.sleep(1); print(len(x) >> 20)"
    )
    assert (done.stdout, done.end) == ("330\n", "ok")
    used = strong.status().resources
    assert 330 << 20 < used["memoryBytes"] < 512 << 20
    assert used["diskBytes"] < 256 << 20
    strong.run_code("del x")


def test_it_does_what_others_do(strong: Sandbox) -> None:
    done = strong.run_code("import sys; print('out'); print('err', file=sys.stderr); 6 * 7")
    assert (done.stdout, done.stderr, done.text) == ("out\n", "err\n", "42")

    strong.upload_file("in.txt", content="from outside")
    code = "text = open('in.txt').read(); open('out.txt', 'w').write(text.upper())"
    assert strong.run_code(code).success
    assert strong.download_file("out.txt") == b"FROM OUTSIDE"
    assert "out.txt" in strong.run_command("ls").stdout

    plotted = strong.run_code(PLOT)
    assert any(result.png for result in plotted.results), plotted.stderr

    strong.run_code("kept = 1")
    failed = strong.run_code("1 / 0")
    assert failed.error is not None
    assert failed.error.name == "ZeroDivisionError"
    assert strong.run_code("print(kept)").stdout == "1\n"


def test_the_standard_level_has_its_nodes_kernel(start: Callable[..., Sandbox]) -> None:
    """The control: what shows gVisor above does not show it everywhere."""
    with start("standard", warm=False) as plain:
        assert "Starting gVisor" not in plain.run_code(KERNEL_LOG).stdout
        told = plain.status().isolation
        assert (told["runtimeClassName"], told["kernel"]) == (None, "its node's, shared")


def test_a_level_whose_runtime_class_is_not_there_is_refused(
    start: Callable[..., Sandbox], installation: Installation, kubectl: Kubectl
) -> None:
    def noticed() -> bool:
        found = kubectl.json("get", PROFILE, "custom", "-n", installation.system)
        return bool(condition(found.get("status", {}), "Ready")["status"] == "False")

    eventually(noticed, what="the operator's word on the profile")
    with pytest.raises(RuntimeUnavailable, match="there is no RuntimeClass no-such-class in the cluster"):
        start("custom", warm=False)
