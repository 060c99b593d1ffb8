"""`python -m llmsafespace_gateway.egress`, or `llmsafespace-egress`: the egress proxy as a service."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import signal
import sys
from collections.abc import Sequence

from prometheus_client import generate_latest
from tornado.web import Application, RequestHandler

from llmsafespace_gateway.egress.connection import Limits
from llmsafespace_gateway.egress.rules import Network, index_rules
from llmsafespace_gateway.egress.service import EgressService
from llmsafespace_gateway.logs import Flood, JsonFormatter
from llmsafespace_kube.resources.settings import SettingsError, read_key

log = logging.getLogger("llmsafespace.egress")

PYPI = "https://pypi.org/simple"
_NOTICE = 2.0  # seconds from SIGTERM until new connections go elsewhere
_PATIENCE = 20.0  # seconds for open ones; both together are below Kubernetes' usual 30


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    defaults = Limits()
    parser = argparse.ArgumentParser(prog="llmsafespace-egress", description="The egress proxy of sandboxes.")
    parser.add_argument("--port", type=int, default=3128, help="for sandboxes' agents (3128)")
    parser.add_argument("--http-port", type=int, default=8080, help="/healthz, /readyz, /metrics (8080)")
    parser.add_argument("--key-file", type=_key, required=True, dest="key", help="what signs egress tokens")
    parser.add_argument(
        "--index", action="append", metavar="URL", help=f"a package index that all may reach ({PYPI})"
    )
    parser.add_argument(
        "--denied",
        action="append",
        type=_network,
        default=[],
        metavar="CIDR",
        help="addresses that are refused although they are public, such as the cluster's own",
    )
    parser.add_argument(
        "--connections", type=int, default=defaults.connections, help="of one sandbox at once (%(default)s)"
    )
    parser.add_argument(
        "--idle-timeout",
        type=float,
        default=defaults.idle,
        help="seconds after which a silent connection ends (%(default)g)",
    )
    return parser.parse_args(given)


def _key(path: str) -> bytes:
    try:
        return read_key(path)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is no network like 203.0.113.0/24 or 2001:db8::/32"
        ) from None
    if ipaddress.ip_interface(text).ip != network.network_address:
        raise argparse.ArgumentTypeError(f"{text} is an address in a network: write {network}")
    return network


class _Health(RequestHandler):
    def get(self) -> None:
        self.finish("ok\n")


class _Ready(RequestHandler):
    def initialize(self, ending: asyncio.Event) -> None:
        self._ending = ending

    def get(self) -> None:
        if self._ending.is_set():
            self.set_status(503)
        self.finish("ending\n" if self._ending.is_set() else "ok\n")


class _Metrics(RequestHandler):
    def initialize(self, service: EgressService) -> None:
        self._service = service

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(generate_latest(self._service.metrics.registry))


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises OSError when a port cannot be listened on."""
    limits = Limits(connections=options.connections, idle=options.idle_timeout)
    service = EgressService(
        options.key, index_rules(options.index or [PYPI]), denied=options.denied, limits=limits
    )
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    health = Application(
        [
            ("/healthz", _Health),
            ("/readyz", _Ready, {"ending": ending}),
            ("/metrics", _Metrics, {"service": service}),
        ],
        log_function=lambda handler: None,
    ).listen(options.http_port)
    port = await service.start(options.port)
    log.info("egress serves", extra={"fields": {"port": port}})
    await ending.wait()
    await asyncio.sleep(_NOTICE)
    await service.drain(_PATIENCE)
    health.stop()


def main(given: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    options = arguments(given)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Flood())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        asyncio.run(serve(options))
    except OSError as error:
        log.error("egress cannot serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
