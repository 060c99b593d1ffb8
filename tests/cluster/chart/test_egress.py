"""From inside a sandbox through the egress proxy: what its rules allow is served, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from llmsafespace import Sandbox
from llmsafespace.errors import SandboxError
from tests.cluster.chart.support_chart import RESOURCES, Release
from tests.cluster.chart.support_outside import (
    PACKAGE,
    PUBLIC_ADDRESS,
    PUBLIC_NAMES,
    Outside,
    web_site,
)
from tests.cluster.conftest import Images
from tests.cluster.support import Kubectl, Namespaces

ONE, OTHER = PUBLIC_NAMES
FETCH = """
import ssl, urllib.request
def fetch(url):
    try:
        trust = ssl.create_default_context(cafile="ca.pem")
        return urllib.request.urlopen(url, timeout=20, context=trust).read().decode()
    except OSError as error:  # HTTPError too, and "Tunnel connection failed: 403 Forbidden"
        return str(error)
print(fetch({url!r}))
"""
# A tunnel to one host, and in it what a client says first: a TLS ClientHello with this name, or without one.
TUNNEL = """
import socket, ssl
way = socket.create_connection(("127.0.0.1", 3128), 20)
way.sendall(b"CONNECT {host}:443 HTTP/1.0\\r\\n\\r\\n")
print(way.recv(1024).split(b"\\r\\n")[0].decode())
trust = ssl.create_default_context(cafile="ca.pem")
trust.check_hostname = False
try:
    with trust.wrap_socket(way, server_hostname={name!r}) as tls:
        tls.sendall(b"GET / HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n")
        print(tls.makefile("rb").read().split(b"\\r\\n")[-1].decode())
except OSError:
    print("cut off")
"""


@pytest.fixture(scope="module")
def certificate(release: Release, namespaces: Namespaces, kubectl: Kubectl, images: Images) -> str:
    """That of a public web site, whose names the egress proxy resolves, as no sandbox can."""
    made = web_site(kubectl, namespaces("web-site"), images["python"])
    aliases = [{"ip": PUBLIC_ADDRESS, "hostnames": list(PUBLIC_NAMES)}]
    patch = json.dumps({"spec": {"template": {"spec": {"hostAliases": aliases}}}})
    proxy = ("deployment", release.component("egress"), "--namespace", release.system)
    kubectl("patch", *proxy, "--patch", patch)
    kubectl("rollout", "status", *proxy, "--timeout=60s")
    return made


@pytest.fixture(scope="module")
def granted(release: Release, certificate: str) -> Iterator[dict[str, Sandbox]]:
    """For each public name a sandbox whose rules allow that one, and not the other."""
    with release.gateway_url() as url, ExitStack() as stack:
        yield {
            name: stack.enter_context(
                Sandbox(
                    release.runtime,
                    release.admin_key(),
                    resources=RESOURCES,
                    api_url=url,
                    network_access={"egress": [{"domain": name, "ports": [80, 443]}]},
                    files={"ca.pem": certificate},
                )
            )
            for name in PUBLIC_NAMES
        }


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("allowed", "denied"), [(ONE, OTHER), (OTHER, ONE)])
def test_a_sandbox_gets_where_its_own_rules_say(
    granted: dict[str, Sandbox], scheme: str, allowed: str, denied: str
) -> None:
    """Both names are the same server: nothing but the rules makes the difference."""
    inside = granted[allowed]
    assert inside.run_code(FETCH.format(url=f"{scheme}://{allowed}/")).stdout == f"this is {allowed}\n"
    assert "403" in inside.run_code(FETCH.format(url=f"{scheme}://{denied}/")).stdout


@pytest.mark.parametrize("url", [f"https://{ONE}:8443/", f"https://{PUBLIC_ADDRESS}/", f"http://{ONE}:8443/"])
def test_another_port_or_the_bare_address_is_another_destination(
    granted: dict[str, Sandbox], url: str
) -> None:
    assert "403" in granted[ONE].run_code(FETCH.format(url=url)).stdout


def test_a_tunnel_leads_to_the_server_that_its_tls_names(granted: dict[str, Sandbox]) -> None:
    """The server has both names, and a tunnel to the one would serve the other, were it not looked into."""
    said = granted[ONE].run_code(TUNNEL.format(host=ONE, name=ONE)).stdout
    assert said == f"HTTP/1.1 200 Connection established\nthis is {ONE}\n"
    for name in (OTHER, None):
        said = granted[ONE].run_code(TUNNEL.format(host=ONE, name=name)).stdout
        assert said == "HTTP/1.1 200 Connection established\ncut off\n"


def test_every_decision_is_in_the_proxys_log(granted: dict[str, Sandbox], release: Release) -> None:
    inside = granted[ONE]
    for name in PUBLIC_NAMES:
        inside.run_code(FETCH.format(url=f"https://{name}/"))
    proxy = ("deployment/" + release.component("egress"), "--namespace", release.system)
    lines = [json.loads(line) for line in release.kubectl("logs", *proxy).splitlines()]
    told = {(line.get("sandbox"), line.get("host"), line.get("decision")) for line in lines}
    assert {(inside.id, ONE, "allowed"), (inside.id, OTHER, "denied")} <= told


def test_packages_are_installed_from_the_configured_index(
    granted: dict[str, Sandbox], outside: Outside
) -> None:
    """No sandbox can reach it but through the proxy, and nobody has told this one where it is."""
    inside = granted[ONE]
    done = inside.install(PACKAGE)
    assert inside.run_code("import outside_package; print(outside_package.WHERE)").stdout == "the index\n"
    assert f"http://{outside.index[0]}:{outside.index[1]}" in done.stdout
    with pytest.raises(SandboxError, match="no-such-package-anywhere"):
        inside.install("no-such-package-anywhere")
