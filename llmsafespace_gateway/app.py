"""The gateway's process: configuration, wiring, start and drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from jupyter_core.application import JupyterApp
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets, bind_unix_socket
from traitlets import Bool, Dict, Enum, Float, Int, List, Unicode, default

from llmsafespace_gateway import wiring
from llmsafespace_gateway.access import commands as key_commands
from llmsafespace_gateway.errors import ApiError

EXAMPLE = """Try it:
    export LLMSAFESPACE_API_URL={where} LLMSAFESPACE_API_KEY={key}
    .venv/bin/llmsafespace run - <<< 'import sys; print("hello from", sys.version)'
    open {where}/api/v1/docs"""
DEFAULT_POOLS = (
    {"name": "python", "runtime": "python", "minSize": 2, "maxSize": 8},
    {"name": "sdk-default", "runtime": "python:3.10", "minSize": 2, "maxSize": 4},
)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class GatewayApp(JupyterApp):
    """An authenticated gateway to isolated, warm, real Jupyter kernels."""

    name = "llmsafespace-gateway"
    description = __doc__ or ""
    examples = """
    llmsafespace-gateway    # serves on http://127.0.0.1:8080
    llmsafespace-gateway --port 9000 --data-dir /srv/llmsafespace
    llmsafespace-gateway --backend kubernetes --kubernetes-settings settings.json
    llmsafespace-gateway keys create --data-dir /srv/llmsafespace --user ada --role developer
    """

    ip = Unicode("127.0.0.1", help="The address to listen on.").tag(config=True)
    port = Int(8080, help="The port to listen on; 0 takes a free one.").tag(config=True)
    socket = Unicode("", help="Listen on this unix socket instead of a port.").tag(config=True)
    data_dir = Unicode(help="Where keys, records and running sandboxes are kept.").tag(config=True)
    database_url = Unicode("", help="SQLAlchemy URL of the store; SQLite in the data dir by default.").tag(
        config=True
    )
    database_url_file = Unicode(
        "", help="A file with the URL of the store, instead of --database-url: for one with a password."
    ).tag(config=True)
    first_key_file = Unicode(
        "", help="A file with the first admin key, instead of one that is made up and printed."
    ).tag(config=True)
    backend = Enum(
        ("local", "kubernetes"),
        "local",
        help="Where sandboxes run: here, or in pods of a cluster.",
    ).tag(config=True)
    kubernetes_settings = Unicode(
        "", help="The settings file that gateway and operator share, for --backend kubernetes."
    ).tag(config=True)
    runtimes_dir = Unicode(help="Where prepared runtimes are cached.").tag(config=True)
    runtime_packages = List(
        Unicode(), ["numpy", "pandas", "matplotlib"], help="Packages of every Python runtime."
    ).tag(config=True)
    default_runtime = Unicode("python", help="The runtime of requests that name none.").tag(config=True)
    strict_runtimes = Bool(
        False, help="Refuse a runtime version that is not there, instead of serving the nearest."
    ).tag(config=True)
    warm_pools = List(
        Dict(), help="Warm pools that always exist, in the shape of POST /api/v1/warmpools."
    ).tag(config=True)

    @default("warm_pools")
    def _default_warm_pools(self) -> list[dict[str, Any]]:
        # One process that makes a sandbox or two gains nothing from a pool that fills beside them.
        none = self.embedded or self.backend != "local"
        return [] if none else [dict(pool) for pool in DEFAULT_POOLS]

    quotas = Dict({}, help="Quota per tenant: sandboxes, cpu (cores), memory (bytes).").tag(config=True)
    rate_limit = Float(100.0, help="Requests per second that one key may make for long.").tag(config=True)
    rate_burst = Int(400, help="Requests that one key may make at once.").tag(config=True)
    insecure_no_isolation = Bool(
        False, help="Run sandboxes as plain processes where bubblewrap cannot work. Loopback only."
    ).tag(config=True)
    embedded = Bool(
        False, help="Serve the parent process on a private unix socket, without keys, as long as it lives."
    ).tag(config=True)
    drain_timeout = Float(10.0, help="Seconds that running requests get at SIGTERM.").tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {
        "config": "JupyterApp.config_file",
        "log-level": "Application.log_level",
        "ip": "GatewayApp.ip",
        "port": "GatewayApp.port",
        "socket": "GatewayApp.socket",
        "data-dir": "GatewayApp.data_dir",
        "runtimes-dir": "GatewayApp.runtimes_dir",
        "database-url": "GatewayApp.database_url",
        "database-url-file": "GatewayApp.database_url_file",
        "first-key-file": "GatewayApp.first_key_file",
        "backend": "GatewayApp.backend",
        "kubernetes-settings": "GatewayApp.kubernetes_settings",
    }
    flags: ClassVar[dict[str, Any]] = {
        "debug": ({"Application": {"log_level": logging.DEBUG}}, "Log whatever helps to find a fault."),
        "strict-runtimes": (
            {"GatewayApp": {"strict_runtimes": True}},
            "Refuse runtime versions that are not there.",
        ),
        "insecure-no-isolation": (
            {"GatewayApp": {"insecure_no_isolation": True}},
            "Run sandboxes without isolation (loopback only, for trusted code).",
        ),
        "embedded": ({"GatewayApp": {"embedded": True}}, "Serve the parent process on a private socket."),
    }

    @default("data_dir")
    def _default_data_dir(self) -> str:
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return str(Path(base, "llmsafespace").expanduser())

    @default("runtimes_dir")
    def _default_runtimes_dir(self) -> str:
        named = os.environ.get("LLMSAFESPACE_RUNTIMES")
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return named or str(Path(base, "llmsafespace", "runtimes").expanduser())

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT. Exits with 1 and one line of why when it cannot start."""
        super().start()
        try:
            self._check()
            uvloop.run(self._serve())
        except ApiError as error:
            self.exit_with(error.message)
        except OSError as error:
            self.exit_with(f"cannot serve: {error}")

    def exit_with(self, message: str) -> None:
        """One line on stderr, exit status 1."""
        print(f"{self.name}: {message}", file=sys.stderr)
        raise SystemExit(1)

    def _check(self) -> None:
        if self.insecure_no_isolation and not self.socket and self.ip not in LOOPBACK:
            raise ApiError("invalid_request", "--insecure-no-isolation only serves loopback; drop --ip")
        if self.embedded and not self.socket:
            raise ApiError("invalid_request", "--embedded needs --socket PATH")
        if self.backend == "kubernetes" and not self.kubernetes_settings:
            raise ApiError("invalid_request", "--backend kubernetes needs --kubernetes-settings FILE")
        if self.backend == "kubernetes" and self.warm_pools:
            raise ApiError("invalid_request", "warm pools are WarmPool objects here; drop warm_pools")

    async def _serve(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        parent = asyncio.create_task(_standard_input_ended(stop)) if self.embedded else None
        services = await wiring.build(self)
        try:
            await self._listen(services, stop)
        finally:
            if parent is not None:
                parent.cancel()
            await services.close(end_sandboxes=self.embedded)

    async def _listen(self, services: wiring.Services, stop: asyncio.Event) -> None:
        server = HTTPServer(services.application(), max_buffer_size=128 * 1024**2, max_body_size=64 * 1024**2)
        if self.socket:
            server.add_socket(bind_unix_socket(self.socket, mode=0o600))
        else:
            sockets = bind_sockets(self.port, self.ip, backlog=1024)
            server.add_sockets(sockets)
            self.port = sockets[0].getsockname()[1]
        self._announce(services)
        await stop.wait()
        self.log.info("draining: no new connections, sandboxes stay")
        server.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(services.drain(server), self.drain_timeout)

    def _announce(self, services: wiring.Services) -> None:
        if self.embedded:
            print(json.dumps({"ready": True, "socket": self.socket}), flush=True)
            return
        where = f"unix socket {self.socket}" if self.socket else f"http://{self.ip}:{self.port}"
        key = services.first_key or "<your key>"
        print(f"LLMSafeSpace serves on {where}")
        if services.first_key:
            print(f"Admin key (shown once): {services.first_key}")
        print(EXAMPLE.format(where=where, key=key), flush=True)


async def _standard_input_ended(stop: asyncio.Event) -> None:
    """Set `stop` when the parent has closed our standard input."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(4096):
        pass
    stop.set()


def main(argv: list[str] | None = None) -> None:
    """Entry point of `llmsafespace-gateway`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["keys"]:
        raise SystemExit(key_commands.main(arguments[1:]))
    GatewayApp.launch_instance(argv=arguments)


if __name__ == "__main__":
    main()
