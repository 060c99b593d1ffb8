"""The gateway's process: configuration, wiring, start and drain."""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from jupyter_core.application import JupyterApp
from traitlets import Bool, Dict, Enum, Float, Int, List, Unicode, default

from llmsafespace_agent.allocator import keep_freed_memory
from llmsafespace_gateway import configuration, logs, wiring
from llmsafespace_gateway.configuration import CommaSeparated
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.lifecycle import serve

EXAMPLE = """Try it:
    export LLMSAFESPACE_API_URL={where} LLMSAFESPACE_API_KEY={key}
    .venv/bin/llmsafespace run - <<< 'import sys; print("hello from", sys.version)'
    open {where}/api/v1/docs"""
DEFAULT_POOLS = ({"name": "python", "runtime": "python", "minSize": 2, "maxSize": 8},)


class GatewayApp(JupyterApp):
    """An authenticated gateway to isolated, warm, real Jupyter kernels."""

    CONFIG_FILE: ClassVar[str] = "llmsafespace_gateway_config"

    name = "llmsafespace-gateway"
    version = version("llmsafespace-gateway")
    description = __doc__ or ""
    examples = """
    llmsafespace-gateway    # serves on http://127.0.0.1:8080
    llmsafespace-gateway --port 9000 --data-dir /srv/llmsafespace
    llmsafespace-gateway --backend kubernetes --kubernetes-settings settings.json
    llmsafespace-gateway --generate-config --config gateway.py    # an example of every option
    llmsafespace-gateway keys create --data-dir /srv/llmsafespace --user ada --role developer
    """
    subcommand_description = "Without a subcommand it serves. `{app} SUBCOMMAND --help` says more of each."
    subcommands: ClassVar[dict[str, Any]] = {
        "serve": ("llmsafespace_gateway.app.Serve", "Serve; as without a subcommand."),
        "keys": ("llmsafespace_gateway.commands.keys.Keys", "Make, list and revoke API keys."),
        "users": ("llmsafespace_gateway.commands.users.Users", "List users and change their roles."),
        "backup": ("llmsafespace_gateway.commands.backup.Backup", "Copy the store, also while it is in use."),
        "restore": ("llmsafespace_gateway.commands.backup.Restore", "Put a copy in the store's place."),
        "check": ("llmsafespace_gateway.commands.check.Check", "Look whether it could serve here."),
    }

    ip = Unicode("127.0.0.1", help="The address to listen on.").tag(config=True)
    port = Int(8080, help="The port to listen on; 0 takes a free one.").tag(config=True)
    certfile = Unicode(
        "",
        help="The TLS certificate to show, with its chain, in PEM. A renewed file is taken within seconds.",
    ).tag(config=True)
    keyfile = Unicode("", help="The certificate's key in PEM, where it is not in certfile.").tag(config=True)
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
    audit_days = Float(90.0, help="Days for which the audit log keeps its entries.").tag(config=True)
    audit_entries = Int(
        1_000_000,
        help="Entries that the audit log keeps; beyond that the oldest go, of the tenants that have most.",
    ).tag(config=True)
    insecure_no_isolation = Bool(
        False, help="Run sandboxes as plain processes where bubblewrap cannot work. Loopback only."
    ).tag(config=True)
    embedded = Bool(
        False, help="Serve the parent process on a private unix socket, without keys, as long as it lives."
    ).tag(config=True)
    drain_timeout = Float(10.0, help="Seconds that running requests get at SIGTERM.").tag(config=True)
    drain_delay = Float(
        0.0, help="Seconds between /readyz saying so and the end of listening, at SIGTERM."
    ).tag(config=True)
    slow_callback = Float(
        0.0, help="Log what holds the event loop for more seconds of processor time; 0: do not watch."
    ).tag(config=True)
    log_style = Enum(
        ("auto", "text", "json"),
        "auto",
        help="The log's lines: text for people, json for machines; auto is text on a terminal.",
    ).tag(config=True)
    allow_origin = Unicode(
        "",
        help="The origin whose pages may read answers in a browser: https://app.example, or * for all.",
    ).tag(config=True)
    allow_origin_pat = Unicode("", help="The same by a regular expression for the whole origin.").tag(
        config=True
    )
    allow_token_in_url = Bool(
        False, help="Take API keys as ?token= in every URL, which others may log; websockets always may."
    ).tag(config=True)
    trusted_proxies = CommaSeparated(
        help="Networks of reverse proxies whose X-Forwarded-For and -Proto are believed, as 10.0.0.0/8."
    ).tag(config=True)
    max_connections = Int(
        0, help="Connections that may be open at once; 0 chooses by the limit of descriptors."
    ).tag(config=True)
    max_connections_per_address = Int(
        0, help="Connections of one client address; 0 is a quarter of all. Loopback is never counted."
    ).tag(config=True)
    head_timeout = Float(15.0, help="Seconds for a request's head to arrive.").tag(config=True)
    keep_alive_timeout = Float(75.0, help="Seconds that a connection may wait for a next request.").tag(
        config=True
    )
    stalled_timeout = Float(
        300.0, help="Seconds after which a client that takes nothing of its answer is cut off."
    ).tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {
        "config": "JupyterApp.config_file",
        "log-level": "Application.log_level",
        "log-format": "GatewayApp.log_style",
        "ip": "GatewayApp.ip",
        "port": "GatewayApp.port",
        "certfile": "GatewayApp.certfile",
        "keyfile": "GatewayApp.keyfile",
        "socket": "GatewayApp.socket",
        "data-dir": "GatewayApp.data_dir",
        "runtimes-dir": "GatewayApp.runtimes_dir",
        "database-url": "GatewayApp.database_url",
        "database-url-file": "GatewayApp.database_url_file",
        "first-key-file": "GatewayApp.first_key_file",
        "backend": "GatewayApp.backend",
        "kubernetes-settings": "GatewayApp.kubernetes_settings",
        "allow-origin": "GatewayApp.allow_origin",
        "allow-origin-pat": "GatewayApp.allow_origin_pat",
        "trusted-proxies": "GatewayApp.trusted_proxies",
        "drain-timeout": "GatewayApp.drain_timeout",
    }
    flags: ClassVar[dict[str, Any]] = {
        "generate-config": (
            {"GatewayApp": {"generate_config": True}},
            "Write a configuration file with every option, commented, and end.",
        ),
        "y": ({"GatewayApp": {"answer_yes": True}}, "Overwrite the file that --generate-config writes."),
        "debug": ({"Application": {"log_level": logging.DEBUG}}, "Log whatever helps to find a fault."),
        "strict-runtimes": (
            {"GatewayApp": {"strict_runtimes": True}},
            "Refuse runtime versions that are not there.",
        ),
        "insecure-no-isolation": (
            {"GatewayApp": {"insecure_no_isolation": True}},
            "Run sandboxes without isolation (loopback only, for trusted code).",
        ),
        "allow-token-in-url": (
            {"GatewayApp": {"allow_token_in_url": True}},
            "Take API keys as ?token= in every URL, for clients that know no other way.",
        ),
        "embedded": ({"GatewayApp": {"embedded": True}}, "Serve the parent process on a private socket."),
    }

    @default("config_file_name")
    def _default_config_file_name(self) -> str:
        return self.CONFIG_FILE

    @default("data_dir")
    def _default_data_dir(self) -> str:
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return str(Path(base, "llmsafespace").expanduser())

    @default("runtimes_dir")
    def _default_runtimes_dir(self) -> str:
        named = os.environ.get("LLMSAFESPACE_RUNTIMES")
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return named or str(Path(base, "llmsafespace", "runtimes").expanduser())

    def initialize(self, argv: Any = None) -> None:
        """Take the configuration in. Exits with 1 and one line of what is wrong with it."""
        try:
            configuration.load(self, argv, GatewayApp)
        except ApiError as error:
            self.exit_with(error.message, configuration.exit_status(error))

    def _create_loader(self, argv: Any, aliases: Any, flags: Any, classes: Any) -> Any:
        return configuration.StrictLoader(
            argv, aliases, flags, classes=classes, log=self.log, subcommands=self.subcommands
        )

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT. Exits with 1 and one line of why when it cannot start."""
        super().start()
        keep_freed_memory()
        logs.configure(self.log_level, self.log, self.logs_json)
        os.umask(0o077)  # what others must read, they are let in to where it is made
        try:
            configuration.check(self)
            uvloop.run(serve(self))
        except ApiError as error:
            self.exit_with(error.message)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            self.exit_with(f"cannot serve: {error.strerror or error}{where}")

    def write_default_config(self) -> None:
        """See JupyterApp, which would ask somebody who may not be there."""
        path = Path(self.config_file or Path(self.config_dir, f"{self.CONFIG_FILE}.py"))
        if path.exists() and not self.answer_yes:
            self.exit_with(f"{path} is there already; -y overwrites it, --config FILE names another")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.generate_config_file(), encoding="utf-8")
        except OSError as error:
            self.exit_with(f"{path} cannot be written: {error.strerror}")
        print(f"wrote {path}")

    def exit_with(self, message: str, status: int = 1) -> None:
        """One line on stderr, then the end."""
        line = logs.visible(" ".join(message.split()))
        if self.speaks_json:
            print(logs.line("critical", self.name, line), file=sys.stderr)
        else:
            print(f"{self.name}: {line}", file=sys.stderr)
        raise SystemExit(status)

    @property
    def speaks_json(self) -> bool:
        """True when everything that is written is JSON: where machines read it."""
        return bool(self.log_style == "json" or (self.log_style == "auto" and self.backend == "kubernetes"))

    @property
    def logs_json(self) -> bool:
        """True when the log is JSON."""
        return self.speaks_json or (self.log_style == "auto" and not sys.stderr.isatty())

    @property
    def where(self) -> str:
        """Where it serves: a URL that can be opened on this machine, or the path of a unix socket."""
        if self.socket:
            return f"unix socket {self.socket}"
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.ip, self.ip)  # noqa: S104
        scheme = "https" if self.certfile else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _warn_of_plain_http(self) -> None:
        if self.certfile or self.socket or self.trusted_proxies or self.ip in configuration.LOOPBACK:
            return
        self.log.warning(
            "plain HTTP on %s: keys and code can be read on their way. Give --certfile and --keyfile, or let "
            "a proxy serve TLS and name it with --trusted-proxies",
            self.ip or "every address",
        )

    def announce(self, services: wiring.Gateway) -> None:
        """Say where it serves, and on the first start the admin key: the only time that it is shown."""
        if self.embedded:
            print(json.dumps({"ready": True, "socket": self.socket}), flush=True)
            return
        where = self.where
        self._warn_of_plain_http()
        if self.speaks_json:
            self.log.info("serving", extra={"fields": {"where": where}})
            if services.first_key:
                print(
                    logs.line("info", self.name, f"admin key (shown once): {services.first_key}"), flush=True
                )
            return
        key = services.first_key or "<your key>"
        everywhere = not self.socket and self.ip in ("", "0.0.0.0", "::")  # noqa: S104
        print(
            f"LLMSafeSpace serves on {where}" + (" and this machine's other addresses" if everywhere else "")
        )
        if services.first_key:
            print(f"Admin key (shown once): {services.first_key}")
        print(EXAMPLE.format(where=where, key=key), flush=True)


class Serve(GatewayApp):
    """Serve the gateway."""

    name = "llmsafespace-gateway serve"
    subcommands: ClassVar[dict[str, Any]] = {}


def main(argv: list[str] | None = None) -> None:
    """Entry point of `llmsafespace-gateway`."""
    try:
        GatewayApp.launch_instance(argv=sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `… --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
