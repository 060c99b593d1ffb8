"""What plays the world outside: servers on this machine, and one of the cluster at a public address.

Pods can reach all of them, and sandboxes none but through the egress proxy.
"""

from __future__ import annotations

import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.certificates import self_signed
from tests.cluster.support import Kubectl

Address = tuple[str, int]
PACKAGE = "outside-package"  # what the index has: `outside_package.WHERE` is "the index"
# Public by the address registry (RFC 7535: a sink for queries that mean nothing), and nobody's web server.
PUBLIC_ADDRESS = "192.31.196.77"
PUBLIC_NAMES = ("one.example.org", "other.example.org")


@dataclass
class Outside:
    """Servers on this machine: one answers datagrams, one is a package index, one is neither."""

    udp: Address
    index: Address
    web: Address

    @property
    def index_url(self) -> str:
        """For the egress proxy's `--index`."""
        return f"http://{self.index[0]}:{self.index[1]}/simple/"


class _Page(http.server.BaseHTTPRequestHandler):
    pages: Mapping[str, bytes] = {}

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.startswith(f"/simple/{PACKAGE}"):
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.pages.get(self.path, b"reached"))

    def log_message(self, *arguments: object) -> None:
        pass


def _wheel(module: str, text: str) -> bytes:
    """A package of one module, as pip installs it."""
    about = f"{module}-1.0.dist-info"
    files = {
        f"{module}.py": text,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _index() -> type[_Page]:
    """A package index (PEP 503) with one package."""
    module = PACKAGE.replace("-", "_")
    file = f"{module}-1.0-py3-none-any.whl"

    class Index(_Page):
        pages = {
            f"/simple/{PACKAGE}/": f'<a href="/files/{file}">{file}</a>'.encode(),
            f"/files/{file}": _wheel(module, "WHERE = 'the index'\n"),
        }

    return Index


def _echo(server: socket.socket) -> None:
    try:
        while True:
            data, peer = server.recvfrom(512)
            server.sendto(data, peer)
    except OSError:
        return  # closed


@contextmanager
def serving(host: str) -> Iterator[Outside]:
    """The servers, at this address."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((host, 0))
    webs = [http.server.ThreadingHTTPServer((host, 0), page) for page in (_index(), _Page)]
    threading.Thread(target=_echo, args=(datagrams,), daemon=True).start()
    for web in webs:
        threading.Thread(target=web.serve_forever, daemon=True).start()
    index, beside = (web.server_address[1] for web in webs)
    try:
        yield Outside(datagrams.getsockname(), (host, index), (host, beside))
    finally:
        datagrams.close()
        for web in webs:
            web.shutdown()
            web.server_close()


# Says over HTTP (8080) and TLS (8443) by which name it was asked.
_WEB_SITE = """
import http.server, ssl, threading

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"this is " + self.headers["Host"].encode())

open("/tmp/both.pem", "w").write(BOTH)
plain, tls = (http.server.ThreadingHTTPServer(("", port), Page) for port in (8080, 8443))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/both.pem")
tls.socket = context.wrap_socket(tls.socket, server_side=True)
threading.Thread(target=plain.serve_forever).start()
tls.serve_forever()
"""


def web_site(kubectl: Kubectl, namespace: str, image: str) -> str:
    """A web site at PUBLIC_ADDRESS, as pods see it, which has all PUBLIC_NAMES; its certificate in PEM."""
    certificate, key = self_signed(PUBLIC_NAMES)
    labels = {"app": "web-site"}
    container = {
        "name": "main",
        "image": image,
        "command": ["python3", "-c", f"BOTH = {certificate + key!r}\n{_WEB_SITE}"],
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
    }
    ports = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "https", "port": 443, "targetPort": 8443},
        {"name": "further", "port": 8443, "targetPort": 8443},
    ]
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web-site", "labels": labels},
            "spec": {"containers": [container]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web-site"},
            "spec": {"selector": labels, "ports": ports, "externalIPs": [PUBLIC_ADDRESS]},
        },
        namespace=namespace,
    )
    kubectl("wait", "pod", "web-site", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
    return certificate
