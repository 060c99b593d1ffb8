"""The configuration of a gateway: taken in, and checked before anything is touched.

Whatever is wrong with it becomes one ApiError with one line: which value, and what to write.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import os
import re
from argparse import ArgumentError
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from jupyter_core.application import JupyterApp
from traitlets import List, TraitError, Unicode
from traitlets.config import Application, Config
from traitlets.config.loader import ConfigError, ConfigFileNotFound, KVArgParseConfigLoader

from llmsafespace_gateway import rest
from llmsafespace_gateway.access.quotas import Quota, merge_quota
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.serving import AllowedOrigins, Certificate, TrustedProxies

if TYPE_CHECKING:
    from llmsafespace_gateway.app import GatewayApp

Program = Any  # a JupyterApp, which has no types: the gateway or one of its subcommands

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_POSITIVE = ("rate_limit", "audit_days", "head_timeout", "keep_alive_timeout", "stalled_timeout")
_NOT_NEGATIVE = (
    "drain_timeout",
    "drain_delay",
    "max_connections",
    "max_connections_per_address",
    "slow_callback",
)
_OLD_NAMES = {"pools": "warm_pools"}  # in configurations that were taken without a word until now
_JUPYTER = "jupyter_config"  # shared by all Jupyter applications, whose sections are not ours to judge


class CommaSeparated(List):
    """A list of texts; on the command line also one text with commas."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Unicode(), [], **options)

    def from_string_list(self, s_list: list[str]) -> list[str]:
        """See traitlets."""
        return [part.strip() for text in s_list for part in text.split(",") if part.strip()]


class UsageError(ApiError):
    """The command line itself is wrong: the process exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_request", message)


class StrictLoader(KVArgParseConfigLoader):
    """The command line's loader, which refuses an option that nobody knows instead of leaving it out."""

    def _create_parser(self) -> None:
        super()._create_parser()
        self.parser.error = self._misused  # argparse would print its own usage and exit

    def _misused(self, message: str) -> None:
        lacks_value = re.match(r"argument --([\w-]+): expected", message)
        if lacks_value and lacks_value[1] not in self.aliases:
            self._handle_unrecognized_alias(lacks_value[1])
        for alias, target in self.aliases.items():
            message = message.replace(f"--{target}", f"--{alias}")
        raise ArgumentError(None, message)

    def _handle_unrecognized_alias(self, arg: str) -> None:
        option = arg.lstrip("-")
        near = _near(option, [name for name in (*self.aliases, *self.flags) if isinstance(name, str)])
        raise ArgumentError(
            None,
            f"unknown option --{option}; "
            + (f"did you mean --{near}?" if near else "--help-all lists those that exist"),
        )


def wrong(message: str) -> ApiError:
    """The error for a configuration that cannot be served."""
    return ApiError("invalid_request", message)


def exit_status(error: ApiError) -> int:
    """2 when the command line is wrong, as usual; 1 for anything else that went wrong."""
    return 2 if isinstance(error, UsageError) else 1


# -- taking it in ------------------------------------------------------------------------------------------


def load(app: Program, argv: Any, gateway: type[GatewayApp], arguments: tuple[str, ...] = ()) -> None:
    """Command line, then configuration file. Raises ApiError where JupyterApp would warn and go on.

    `gateway` is the class of the options, `arguments` names the words that may follow them. Where a
    subcommand is named, it is made and takes the rest of the command line.
    """
    app.log.addFilter(_told_by_us)
    try:
        _take_command_line(app, argv, arguments)
        if app.subapp is not None:
            return
        stated = deepcopy(app.config)
        if app.generate_config:
            return
        _load_file(app, gateway)
        app.update_config(stated)
    except (TraitError, ConfigError) as error:
        raise wrong(f"invalid configuration: {error}") from error
    finally:
        app.log.removeFilter(_told_by_us)
    _take_old_names(app)
    _refuse_unknown(app.config.get("GatewayApp", {}), gateway.class_traits(config=True), "GatewayApp")


def _take_command_line(app: Program, argv: Any, arguments: tuple[str, ...]) -> None:
    try:
        _plain(JupyterApp.parse_command_line)(app, argv)
    except (TraitError, ArgumentError, ConfigError) as error:
        raise UsageError(f"invalid command line: {error}") from error
    if app.subapp is not None or len(app.extra_args) <= len(arguments):
        return
    word = app.extra_args[len(arguments)]
    if not app.subcommands:
        raise UsageError(f"unexpected argument {word!r}; see {app.name} --help")
    near = _near(word, app.subcommands)
    advice = f"did you mean {near}?" if near else f"{app.name} --help lists those that exist"
    raise UsageError(f"unknown command {word!r}; {advice}")


def _told_by_us(record: logging.LogRecord) -> bool:
    """False for traitlets' warning of an option that `_refuse_unknown` refuses."""
    return "not recognized by" not in record.getMessage()


def _take_old_names(app: Program) -> None:
    section = app.config.get("GatewayApp", {})
    for old, new in _OLD_NAMES.items():
        if old in section:
            value = section.pop(old)
            app.log.warning("GatewayApp.%s is called %s; change the configuration", old, new)
            if new not in section:
                app.update_config(Config({"GatewayApp": {new: value}}))


def _plain(method: Any) -> Any:
    """A method of traitlets without its decorator that logs errors and exits."""
    return getattr(method, "__wrapped__", method)


def _load_file(app: Program, gateway: type[GatewayApp]) -> None:
    app.raise_config_file_errors = True
    if app.config_file:
        _check_file(gateway, Path(app.config_file))
    own = Path(app.config_file or app.config_file_name)
    paths: Any = str(own.parent) if app.config_file else app.config_file_paths
    try:
        for name, folders in ((_JUPYTER, app.config_file_paths), (own.name, paths)):
            with contextlib.suppress(ConfigFileNotFound):
                _plain(Application.load_config_file)(app, name, path=folders)
    except (TraitError, ConfigError):
        raise
    except Exception as error:  # a Python file may raise anything
        named = app.config_file or "of the configuration folders"
        raise wrong(f"configuration file {named}: {type(error).__name__}: {error}") from error


def _check_file(gateway: type[GatewayApp], path: Path) -> None:
    """traitlets skips a file that is not there, and sections that nobody knows."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"--config {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    if path.suffix not in (".json", ".py"):
        raise wrong(f"--config {path}: the name of a configuration file ends in .json or .py")
    if path.suffix == ".py":
        return
    try:
        found = json.loads(text)
    except ValueError as error:
        raise wrong(f"--config {path}: this is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise wrong(f'--config {path}: write an object, as in {{"GatewayApp": {{"port": 8080}}}}')
    known = {kind.__name__ for kind in gateway.mro()} | {"version"}
    for section, values in found.items():
        if section in gateway.class_traits(config=True):
            raise wrong(f'--config {path}: {section!r} belongs into the section "GatewayApp"')
        if section not in known:
            raise wrong(f"--config {path}: unknown section {section!r}{_meant(section, known)}")
        if section != "version" and not isinstance(values, dict):
            raise wrong(f"--config {path}: {section} must be an object")


def _refuse_unknown(values: Any, known: Any, section: str) -> None:
    for name in values:
        if name not in known and not isinstance(values[name], Config):
            raise wrong(f"unknown option {section}.{name}{_meant(name, known)}")


def _meant(name: str, known: Any) -> str:
    near = _near(name, known)
    return f"; did you mean {near}?" if near else "; --help-all lists those that exist"


def _near(word: str, known: Iterable[str]) -> str | None:
    """The word that was probably meant."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return found[0] if found else None


# -- checking it ---------------------------------------------------------------------------------------------


def check(app: GatewayApp) -> None:
    """Refuse values that cannot be served, before anything is touched. Raises ApiError."""
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value = getattr(app, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and name in _POSITIVE):
            least = "above 0" if name in _POSITIVE else "of at least 0"
            raise wrong(f"invalid {name} {value}: write a number {least}")
    if app.rate_burst < 1:
        raise wrong(f"invalid rate_burst {app.rate_burst}: write a number of at least 1")
    if app.audit_entries < 1:
        raise wrong(f"invalid audit_entries {app.audit_entries}: write a number of at least 1")
    if not 0 <= app.port <= 65535:
        raise wrong(f"invalid --port {app.port}: a port is a number from 0 to 65535")
    try:
        AllowedOrigins(app.allow_origin, app.allow_origin_pat)
    except ValueError as error:
        raise wrong(f"invalid allowed origin: {error}") from error
    _check_together(app)
    if app.certfile:
        Certificate(app.certfile, app.keyfile)
    try:
        TrustedProxies(app.trusted_proxies)
    except ValueError as error:
        raise wrong(f"invalid --trusted-proxies: {error}") from error
    try:
        merge_quota(Quota(), app.quotas)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise wrong(f"invalid quotas: {error}") from error
    for number, pool in enumerate(app.warm_pools):
        try:
            rest.pool_spec(pool)
        except ApiError as error:
            raise wrong(f"invalid warm_pools[{number}]: {error.message.removeprefix('body.')}") from error
        except TypeError as error:
            raise wrong(f"invalid warm_pools[{number}]: {error}") from error


def _check_together(app: GatewayApp) -> None:
    if app.insecure_no_isolation and not app.socket and app.ip not in LOOPBACK:
        raise wrong("--insecure-no-isolation only serves loopback; drop --ip")
    if app.embedded and not app.socket:
        raise wrong("--embedded needs --socket PATH")
    if app.keyfile and not app.certfile:
        raise wrong("--keyfile needs --certfile FILE")
    if app.certfile and app.socket:
        raise wrong("--certfile is for --ip and --port; drop it or --socket")
    if app.backend == "kubernetes" and not app.kubernetes_settings:
        raise wrong("--backend kubernetes needs --kubernetes-settings FILE")
    if app.backend == "kubernetes" and app.warm_pools:
        raise wrong("warm pools are WarmPool objects here; drop warm_pools")
    if app.socket and len(os.fsencode(app.socket)) > 107:
        raise wrong(f"--socket {app.socket}: the path of a unix socket may have 107 bytes; use a shorter one")
