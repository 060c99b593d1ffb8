"""`llmsafespace-gateway check`: whether a gateway with this configuration could serve, and what to do if not.

Nothing that is there is changed. It may run beside the gateway, as it is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from traitlets import Bool

from llmsafespace_gateway import configuration, data_dir, readiness
from llmsafespace_gateway.app import GatewayApp
from llmsafespace_gateway.backends.local import host
from llmsafespace_gateway.backends.local.limits import UNCHARGED
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.backends.runtimes.pip_config import read_pip_config
from llmsafespace_gateway.commands.base import StoreCommand
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.serving import listen_tcp
from llmsafespace_gateway.store import Store, sqlite_file

_SCARCE = 2 * 1024**3  # bytes on a disk, below which the next runtime may not fit
_INDEX_WITHIN = 10.0  # seconds


class Finding(msgspec.Struct, frozen=True):
    """What was found of one part; `advice` is the next step where it is not ok."""

    part: str
    state: Literal["ok", "warn", "fail"]
    message: str
    advice: str = ""


class Check(StoreCommand):
    """Look whether a gateway could serve here, and say what to do where it could not.

    Isolation, cgroups, package index, disks, port, data dir and database have a line each: ok, warn (it
    serves, but) or fail. The exit status is 1 when something fails.
    """

    name = "llmsafespace-gateway check"
    description = __doc__
    examples = "llmsafespace-gateway check --config gateway.py --json"

    json = Bool(False, help="Print JSON instead of lines.").tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {
        **StoreCommand.aliases,
        "ip": "GatewayApp.ip",
        "port": "GatewayApp.port",
        "backend": "GatewayApp.backend",
        "runtimes-dir": "GatewayApp.runtimes_dir",
    }
    flags: ClassVar[dict[str, Any]] = {"json": ({"Check": {"json": True}}, json.help)}

    async def run(self) -> int:
        """See Command."""
        found = [*self._quick(), *await self._slow()]
        if self.json:
            print(json.dumps([msgspec.to_builtins(each) for each in found], indent=2))
        else:
            for each in found:
                print(f"{each.state:<5} {each.part:<14} {each.message}")
                if each.advice:
                    print(f"{'':<20} next: {each.advice}")
        return 1 if any(each.state == "fail" for each in found) else 0

    def _quick(self) -> Iterator[Finding]:
        app, folder = self.gateway, self.data_dir_path
        yield _configuration(app)
        if app.backend == "local":
            yield from _isolation(app.insecure_no_isolation)
        yield _disk("data dir disk", folder)
        if app.backend == "local":
            yield _disk("runtimes disk", Path(app.runtimes_dir).expanduser().absolute())
        yield _data_dir(folder)
        yield _port(app, folder)

    async def _slow(self) -> list[Finding]:
        checks = [self._database()]
        if self.gateway.backend == "local":
            checks.append(self._index())
        return list(await asyncio.gather(*checks))

    async def _database(self) -> Finding:
        try:
            url = self.store_url()
        except ApiError as error:
            if error.code != "not_found":
                return Finding("database", "fail", error.message)
            return Finding("database", "ok", "none yet: the first start makes one, with a first admin key")
        path = sqlite_file(url)
        try:
            if path is not None and (problem := readiness.sqlite_problem(Path(path), None)):
                return Finding("database", "fail", problem, "llmsafespace-gateway restore FILE")
            store = Store.unopened(url)
            async with store.read() as connection:
                await asyncio.wait_for(connection.execute(text("SELECT 1")), 10)
            await store.close()
        except ApiError as error:
            return Finding("database", "fail", error.message)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            return Finding("database", "fail", f"it cannot be used: {reason}", "check --database-url")
        return Finding("database", "ok", path or "it answers")

    async def _index(self) -> Finding:
        config = await read_pip_config()
        where = config.index_url
        if config.had_credentials:
            advice = "sandboxes get none: give them an index, or a mirror, that asks for none"
            return Finding("package index", "warn", f"{where} wants credentials", advice)
        problem = await asyncio.to_thread(_unreachable, where)
        if problem is None:
            return Finding("package index", "ok", where)
        state: Literal["warn", "fail"] = "warn" if _has_runtimes(self.gateway.runtimes_dir) else "fail"
        advice = "see `pip config list`; a proxy is taken from https_proxy"
        return Finding("package index", state, f"{where}: {problem}", advice)


def _has_runtimes(folder: str) -> bool:
    path = Path(folder).expanduser()
    return path.is_dir() and any(path.iterdir())


def _configuration(app: GatewayApp) -> Finding:
    try:
        configuration.check(app)
    except ApiError as error:
        return Finding("configuration", "fail", error.message)
    return Finding("configuration", "ok", "every value can be served")


def _isolation(insecure: bool) -> Iterator[Finding]:
    if insecure:
        yield Finding(
            "isolation", "warn", "off: code runs as plain processes", "drop --insecure-no-isolation"
        )
        return
    with tempfile.TemporaryDirectory(prefix="llmsafespace-check-") as folder:
        Path(folder).chmod(0o711)  # other uids pass through it
        try:
            here = host.find(Path(folder), False, None)
        except ApiError as error:
            what, _, advice = error.message.partition(". ")
            yield Finding("isolation", "fail", what, advice)
            return
    yield Finding("isolation", "ok", f"a sandbox was tried with {here.bwrap}")
    yield _users(here)
    yield _cgroups(here)


def _users(here: Host) -> Finding:
    if here.is_root:
        return Finding("users", "ok", "each sandbox gets a user id of its own")
    text = f"user namespaces work; on the host all sandboxes are user {os.geteuid()}"
    return Finding("users", "warn", text, "start the gateway as root for a user id each")


def _cgroups(here: Host) -> Finding:
    missing = {"memory", "pids", "cpu"} - set(here.hierarchy.folders)
    if not missing:
        return Finding("cgroups", "ok", f"version {here.hierarchy.version}: memory, pids and cpu are bounded")
    return Finding(
        "cgroups",
        "warn",
        f"not writable for {', '.join(sorted(missing))}; instead: {UNCHARGED}",
        "start it as root, or in a delegated cgroup: systemd-run --user --scope -p Delegate=yes …; "
        "in a container, with a writable /sys/fs/cgroup",
    )


def _disk(part: str, folder: Path) -> Finding:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize
    told = f"{free / 1024**3:.1f} GiB free for {folder}"
    if free < readiness.LEAST_FREE or (room.f_files and not room.f_favail):
        return Finding(part, "fail", f"full: {told}", "free some room, or name a folder on another disk")
    if free < _SCARCE:
        return Finding(part, "warn", told, "a runtime with its packages needs about 1 GiB")
    return Finding(part, "ok", told)


def _data_dir(folder: Path) -> Finding:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("data dir", "fail", f"{there} cannot be written", "choose another --data-dir")
    if there != folder:
        return Finding("data dir", "ok", f"{folder} is made at the first start")
    if (problem := readiness.disk_problem(folder)) is not None:
        return Finding("data dir", "fail", problem, "choose another --data-dir, or repair this one")
    if (who := data_dir.holder(folder)) is not None:
        return Finding("data dir", "ok", f"{folder}, in use by {who}")
    return Finding("data dir", "ok", str(folder))


def _port(app: GatewayApp, folder: Path) -> Finding:
    if app.socket:
        return Finding("port", "ok", f"none: unix socket {app.socket}")
    try:
        for each in listen_tcp(app.ip, app.port):
            each.close()
    except ApiError as error:
        served = data_dir.holder(folder) if folder.exists() else None
        if served is not None and served.endswith(f":{app.port}"):
            return Finding("port", "ok", f"{app.port} is served by this data dir's gateway")
        return Finding("port", "fail", error.message)
    return Finding("port", "ok", f"{app.port} of {app.ip or 'all addresses'} is free")


def _unreachable(url: str, open_url: Callable[..., Any] = urllib.request.urlopen) -> str | None:
    if urlsplit(url).scheme not in ("http", "https"):
        return "this is not an http URL"
    try:
        request = urllib.request.Request(url.rstrip("/") + "/pip/", method="HEAD")  # noqa: S310
        with open_url(request, timeout=_INDEX_WITHIN):
            return None
    except urllib.error.HTTPError as error:
        return f"status {error.code}" if error.code >= 500 or error.code in (401, 403, 407) else None
    except OSError as error:
        return f"not reachable: {getattr(error, 'reason', error)}"
