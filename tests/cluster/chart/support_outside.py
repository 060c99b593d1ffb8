"""Servers on this machine, which pods of the cluster can reach and sandboxes cannot."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Address = tuple[str, int]


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
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")

    def log_message(self, *arguments: object) -> None:
        pass


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
    webs = [http.server.ThreadingHTTPServer((host, 0), _Page) for _ in range(2)]
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
