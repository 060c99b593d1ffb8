"""From inside a sandbox: what cannot be reached, though others can, and the one way that is open."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from llmsafespace import Sandbox
from tests.cluster.chart.support_chart import RESOURCES, Release
from tests.cluster.chart.support_outside import Address, Outside
from tests.cluster.conftest import Images
from tests.cluster.support import Kubectl, Namespaces

METADATA = "169.254.169.254"
OUTSIDE_RESOLVER = "9.9.9.9"
# Says for each (host, port) whether TCP connects, or whether a datagram is answered.
PROBE = """
import json, socket
from concurrent.futures import ThreadPoolExecutor

QUERY = bytes.fromhex("abcd01000001000000000000076578616d706c6503636f6d0000010001")

def tcp(where):
    try:
        socket.create_connection(tuple(where), 2).close()
        return True
    except OSError:
        return False

def udp(where):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(2)
        try:
            probe.sendto(QUERY, tuple(where))
            return bool(probe.recv(512))
        except OSError:
            return False

with ThreadPoolExecutor(32) as pool:
    for _ in range(TRIES):
        found = {"tcp": list(pool.map(tcp, TCP)), "udp": list(pool.map(udp, UDP))}
        if all(found["tcp"] + found["udp"]):
            break
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def inside(release: Release, outside: Outside) -> Iterator[Sandbox]:
    """A warm sandbox that was granted one destination, which is at a private address."""
    with (
        release.gateway_url() as url,
        Sandbox(
            release.runtime,
            release.admin_key(),
            resources=RESOURCES,
            api_url=url,
            network_access={"egress": [{"domain": outside.web[0], "ports": [outside.web[1]]}]},
        ) as sandbox,
    ):
        yield sandbox


def service(kubectl: Kubectl, name: str, namespace: str) -> str:
    address: str = kubectl.json("get", "service", name, "--namespace", namespace)["spec"]["clusterIP"]
    return address


@pytest.fixture(scope="module")
def forbidden(release: Release, kubectl: Kubectl, outside: Outside) -> dict[str, Address]:
    """What no sandbox may reach with TCP, and others can."""
    gateway = release.component("gateway")
    pods = kubectl.items("pods", release.system, "--selector", "app.kubernetes.io/component=gateway")
    return {
        "API server": (service(kubectl, "kubernetes", "default"), 443),
        "kubelet": (pods[0]["status"]["hostIP"], 10250),
        "gateway's service": (service(kubectl, gateway, release.system), 80),
        "gateway's pod": (pods[0]["status"]["podIP"], 8080),
        "server outside": outside.web,
        "package index past the proxy": outside.index,
    }


def probed(answer: str) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = json.loads(answer)
    return found


def code(tcp: list[Address], udp: list[Address], tries: int = 1) -> str:
    return f"TCP, UDP, TRIES = {tcp!r}, {udp!r}, {tries}\n{PROBE}"


def test_a_pod_that_is_no_sandbox_reaches_all_of_it(
    forbidden: dict[str, Address], outside: Outside, kubectl: Kubectl, namespaces: Namespaces, images: Images
) -> None:
    """The control: these are real servers, and only the policies stand between them and a sandbox.

    It tries for a while: those that may reach the gateway are listed a moment after they start.
    """
    namespace = namespaces("control")
    container = {
        "name": "main",
        "image": images["python"],
        "command": ["python3", "-c", code(list(forbidden.values()), [outside.udp], tries=20)],
    }
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "control", "namespace": namespace},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
    )
    succeeded = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "pod", "control", "--namespace", namespace, succeeded, "--timeout", "60s")
    found = probed(kubectl("logs", "control", "--namespace", namespace))
    assert dict(zip(forbidden, found["tcp"], strict=True)) == dict.fromkeys(forbidden, True)
    assert found["udp"] == [True]


def test_a_sandbox_reaches_none_of_it(
    inside: Sandbox, forbidden: dict[str, Address], outside: Outside, release: Release
) -> None:
    (other,) = release.await_warm(2)[:1]
    found_dns = release.kubectl.items("services", "kube-system", "--selector", "k8s-app=kube-dns")
    dns = found_dns[0]["spec"]["clusterIP"] if found_dns else "10.96.0.10"
    targets = {
        **forbidden,
        "metadata": (METADATA, 80),
        "another sandbox's agent": (other["status"]["podIP"], 8443),
        "cluster's DNS": (dns, 53),
        "resolver outside": (OUTSIDE_RESOLVER, 53),
    }
    udp = {"outside": outside.udp, "cluster's DNS": (dns, 53), "resolver outside": (OUTSIDE_RESOLVER, 53)}
    done = inside.run_code(code(list(targets.values()), list(udp.values())))
    found = probed(done.stdout)
    assert dict(zip(targets, found["tcp"], strict=True)) == dict.fromkeys(targets, False)
    assert dict(zip(udp, found["udp"], strict=True)) == dict.fromkeys(udp, False)


def test_a_sandbox_resolves_no_name(inside: Sandbox) -> None:
    done = inside.run_code("import socket; socket.getaddrinfo('example.com', 80)")
    assert done.error is not None
    assert done.error.name == "gaierror"


def test_a_sandbox_knows_nothing_of_its_cluster(inside: Sandbox) -> None:
    done = inside.run_code(
        "import glob, os\n"
        "print(glob.glob('/var/run/secrets/*') + glob.glob('/run/secrets/*'))\n"
        "print([name for name in os.environ if 'SERVICE' in name or 'KUBERNETES' in name])"
    )
    assert done.stdout == "[]\n[]\n"


FETCH = """
import urllib.request, urllib.error
def fetch(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return f"{{error.code}} {{error.read().decode()}}"
print(fetch({url!r}))
"""


def test_the_proxy_lets_a_sandbox_to_the_package_index(inside: Sandbox, outside: Outside) -> None:
    done = inside.run_code(FETCH.format(url=outside.index_url))
    assert done.stdout == "reached\n", done.stderr


def test_the_proxy_lets_a_sandbox_nowhere_else(inside: Sandbox, outside: Outside) -> None:
    beside = f"http://{outside.web[0]}:{outside.web[1]}/"
    for url in (beside, f"http://{METADATA}/latest/meta-data", "http://example.com/"):
        done = inside.run_code(FETCH.format(url=url))
        assert done.stdout.startswith("403 "), (url, done.stdout, done.stderr)


def test_the_proxy_serves_nobody_without_a_token(inside: Sandbox, outside: Outside, release: Release) -> None:
    proxy = service(release.kubectl, release.component("egress"), release.system)
    done = inside.run_code(
        "import socket\n"
        f"with socket.create_connection(({proxy!r}, 3128), 10) as way:\n"
        f"    way.sendall(b'GET {outside.index_url} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "    try:\n"
        "        print(way.recv(1024))\n"
        "    except ConnectionResetError:\n"
        "        print(b'')"
    )
    assert b"reached" not in done.stdout.encode()
    assert "200 OK" not in done.stdout
