"""Starting a keeper, and speaking to the agent that it started."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import marshal
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_gateway import descriptors
from llmsafespace_gateway.backends.local import plans, records, sweeping
from llmsafespace_gateway.backends.local.keeper.processes import start_time
from llmsafespace_gateway.backends.local.plans import Host, Recipe
from llmsafespace_gateway.errors import ApiError
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import ProofError, prove_as_gateway
from llmsafespace_protocol.requests import Answer, Open, Opened, OpenRpc, Ready, Request, Status

KEEPER = Path(__file__).with_name("keeper")
SOCKET = "agent.sock"
START_TIMEOUT = 60.0  # for a keeper's answer
READY_TIMEOUT = 120.0  # for a parked kernel
DIAL_TIMEOUT = 10.0
_DIAL_AGAIN = 0.05  # seconds after an agent could not be dialled
TO_BIND = READY_TIMEOUT + 120.0  # seconds that a claim adds to a lifetime: it counts from the bind only
_BACKLOG = 128
_FOR_PYTHON = ("LD_LIBRARY_PATH",)  # what the gateway's interpreter may need, its keepers' needs too
# What asking an agent can raise: it is hostile, and may send no JSON, no UTF-8, or nest too deeply.
_BROKEN = (ConnectionError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ADDRESS = 100  # bytes of a path that surely fit into a unix socket's address


def unavailable(message: str) -> ApiError:
    """The error for a sandbox that cannot be started or reached."""
    return ApiError("service_unavailable", message, retry_after=1.0)


def new_name() -> str:
    """A name for a sandbox's folder and cgroups."""
    return secrets.token_hex(8)


def start(
    host: Host,
    recipe: Recipe,
    *,
    lifeline: int,
    pool: str | None = None,
    claimed: records.Claimed | None = None,
    egress: bool,
) -> records.State:
    """Start a sandbox (blocking; run it in a thread). Its agent may not listen to anybody yet.

    `claimed` given: it is somebody's from its first moment. Raises ApiError or OSError when it cannot be
    started; nothing of it is left then.
    """
    folder = host.data_dir / "sandboxes" / new_name()
    try:
        return _start(host, recipe, folder, lifeline, pool, claimed, egress)
    except BaseException:
        sweeping.undo_start(host, folder)
        raise


def _start(
    host: Host,
    recipe: Recipe,
    folder: Path,
    lifeline: int,
    pool: str | None,
    claimed: records.Claimed | None,
    egress: bool,
) -> records.State:
    name = folder.name
    token = secrets.token_hex(32)
    _make_folder(host, folder)
    if claimed is not None:
        write_lifetime(folder, claimed.max_lifetime + TO_BIND)
        records.write(folder / "claim.json", claimed)
    config = plans.agent_config(host, recipe, name, token, egress)
    listening = _listen(folder)
    try:
        plan = plans.plan(
            host,
            recipe,
            name,
            config,
            warm=claimed is None,
            listen=listening.fileno(),
            lifeline=lifeline,
        )
        uid = spawn(host.python, plan, (listening.fileno(), lifeline))
    finally:
        listening.close()
    state = records.State(
        name=name,
        token=token,
        runtime=recipe.runtime.id,
        languages=recipe.runtime.languages,
        recipe=recipe.digest,
        pool=pool,
        resources=recipe.resources,
        isolation=plans.isolation(host, recipe, uid, egress),
        uid=uid,
        started_at=time.time(),
        cgroups=tuple(group["path"] for side in plan["sides"] for group in side["cgroups"]),
    )
    with contextlib.suppress(FileNotFoundError):  # it ended meanwhile, and its folder with it
        records.write(folder / "state.json", state)
    return state


def _make_folder(host: Host, folder: Path) -> None:
    """The sandbox's folder, with room for the words of its end: that must be right on a full disk, too."""
    make_folder(folder, 0o700)
    make_folder(folder / "egress", 0o711)  # the sandbox's uid goes through it to the proxy's socket
    records.reserve(folder / "end", records.WORD)
    records.reserve(records.reserved(host.data_dir / "ended" / f"{folder.name}.json"))
    if host.bwrap is None:
        for each in ("home", "workspace", "run", "tmp"):
            make_folder(folder / each, 0o700)


def make_folder(path: Path, mode: int) -> None:
    """Make a folder with exactly this mode, whatever the umask."""
    path.mkdir(mode=mode)
    path.chmod(mode)


def _listen(folder: Path) -> socket.socket:
    """The agent's listening socket, made here so that nothing of the host is writable in the sandbox."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(folder / SOCKET) as address:
            listening.bind(address)
            os.chmod(address, 0o600)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address of a socket whose path may be longer than addresses can be."""
    if len(os.fsencode(path)) <= _ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def spawn(python: str, plan: dict[str, Any], inherited: tuple[int, ...]) -> int:
    """Start a keeper with its plan; the sandbox's uid on the host. Raises ApiError with its reason."""
    process = subprocess.Popen(
        [python, "-I", "-S", str(KEEPER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=inherited,
        cwd="/",
        env={name: os.environ[name] for name in _FOR_PYTHON if name in os.environ},
    )
    with contextlib.suppress(OSError):  # it is gone already, which is told below
        descriptors.give_back(process.pid)  # it waits for its plan, and has started nothing yet
    try:
        said = process.communicate(marshal.dumps(plan), START_TIMEOUT)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired as error:
        process.kill()
        for pipe in (process.stdin, process.stdout):  # not read to its end: a detached keeper holds it
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()
        raise unavailable("the sandbox's keeper did not start in time") from error
    word, _, rest = said.partition(" ")
    if word != "ok":
        if os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said:
            raise OSError(errno.ENOSPC, said.strip())
        raise unavailable(f"the sandbox could not be started: {said.strip() or 'its keeper died'}")
    return int(rest)


async def dial(folder: Path, token: str, open_: Open) -> FrameStream:
    """A proved stream to the agent. Raises ProofError or OSError."""
    loop = asyncio.get_running_loop()
    with short_address(folder / SOCKET) as address:
        connecting = loop.create_unix_connection(FrameStream, address)
        _, stream = await asyncio.wait_for(connecting, DIAL_TIMEOUT)
    await prove_as_gateway(stream, bytes.fromhex(token), msgspec.to_builtins(open_))
    return stream


async def ready(folder: Path, token: str) -> Status:
    """Wait until a kernel is parked. Raises ApiError when the agent fails or takes too long."""
    until = time.monotonic() + READY_TIMEOUT
    while True:
        try:
            stream = await dial(folder, token, OpenRpc())
        except (ProofError, OSError) as error:  # a busy machine: the agent is not there yet
            if records.keeper_of(folder) is None:
                raise unavailable("the sandbox ended while it started") from error
            if time.monotonic() > until:
                raise unavailable("the sandbox's agent did not start in time") from error
            await asyncio.sleep(_DIAL_AGAIN)  # it may refuse, or hang up, at once
            continue
        try:
            return await asyncio.wait_for(_ask_ready(stream), max(1.0, until - time.monotonic()))
        except _BROKEN as error:
            raise unavailable("the sandbox's agent failed before a kernel was ready") from error
        finally:
            stream.close()


async def _ask_ready(stream: FrameStream) -> Status:
    _, body = await stream.next_frame()
    opened = msgspec.json.decode(body, type=Opened)
    if opened.error is None:
        params = msgspec.Raw(msgspec.json.encode(Ready(READY_TIMEOUT)))
        stream.send(FrameKind.JSON, msgspec.json.encode(Request(1, "ready", params)))
        _, body = await stream.next_frame()
        answer = msgspec.json.decode(body, type=Answer)
        if answer.error is None and answer.result is not None:
            return msgspec.json.decode(answer.result, type=Status)
        opened = Opened(answer.error)
    said = opened.error.message[:1000] if opened.error is not None else "no answer"
    raise unavailable(f"the sandbox's agent is not ready: {said}")


def write_lifetime(folder: Path, seconds: float) -> None:
    """Note that the sandbox may live so many seconds from now on. Raises OSError."""
    staging = folder / "until.new"
    staging.write_text(f"{time.monotonic() + seconds:.3f}")
    staging.rename(folder / "until")


def set_lifetime(folder: Path, seconds: float) -> None:
    """As `write_lifetime`, and tell the keeper; not when the sandbox has just ended."""
    with contextlib.suppress(OSError):
        write_lifetime(folder, seconds)
        pid = records.keeper_of(folder)
        if pid is None:
            return
        descriptor = os.pidfd_open(pid)
        try:
            if records.keeper_of(folder) == pid:
                signal.pidfd_send_signal(descriptor, signal.SIGHUP)
        finally:
            os.close(descriptor)


async def end(folder: Path, word: str) -> bool:
    """Ask a sandbox's keeper to end it with this word, and wait until everything of it is gone.

    False when no keeper lives.
    """
    pid = records.keeper_of(folder)
    if pid is None:
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if records.keeper_of(folder) != pid:
            return False
        records.overwrite(folder / "end", word)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        await _readable(descriptor)
    finally:
        os.close(descriptor)
    return True


async def kept_no_more(pid: int, started: str) -> None:
    """End the keeper of a folder that somebody has removed, and wait until it is gone."""
    if start_time(pid) != started or started == "0":
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_time(pid) == started:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            await _readable(descriptor)
    finally:
        os.close(descriptor)


async def gone(folder: Path) -> None:
    """Wait until the sandbox's keeper is gone."""
    pid = records.keeper_of(folder)
    if pid is None:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if records.keeper_of(folder) == pid:
            await _readable(descriptor)
    finally:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
