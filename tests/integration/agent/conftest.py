"""Real agents without a sandbox around them: a subprocess each, spoken to as the gateway does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest_asyncio

from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import pack, unpack
from llmsafespace_protocol.proof import prove_as_gateway
from llmsafespace_protocol.requests import METHODS, Answer, Error, OpenRpc, Request

DEADLINE = 60.0
TOKEN = "5e" * 32


class Refused(Exception):
    """The agent refused; `error` says how."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.error = error


@dataclass
class Got:
    """One message from a kernel, or a JSON frame that is none."""

    seq: int
    channel: str
    kind: str
    parent: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]


def decoded(kind: int, body: bytes) -> Got | dict[str, Any]:
    """A frame of a channels or execution stream."""
    if kind == FrameKind.JSON:
        said: dict[str, Any] = json.loads(body)
        return said
    (seq,) = struct.unpack_from(">Q", body)
    channel, parts = unpack(body[8:])
    header, parent, metadata, content = (json.loads(bytes(part)) for part in parts[:4])
    return Got(seq, channel, header["msg_type"], parent, metadata, content)


async def frame(stream: FrameStream) -> tuple[int, bytes]:
    """The next frame, within the deadline."""
    return await asyncio.wait_for(stream.next_frame(), DEADLINE)


async def document(stream: FrameStream) -> dict[str, Any]:
    """The next frame, which is JSON."""
    kind, body = await frame(stream)
    assert kind == FrameKind.JSON, (kind, body[:200])
    said: dict[str, Any] = json.loads(body)
    return said


class Rpc:
    """Calls one after the other, or (`ask`, then `answer`) several at a time."""

    def __init__(self, stream: FrameStream) -> None:
        self.stream = stream
        self._number = 0

    def ask(self, method: str, **params: Any) -> int:
        self._number += 1
        raw = msgspec.Raw(json.dumps(params).encode())
        self.stream.send(FrameKind.JSON, msgspec.json.encode(Request(self._number, method, raw)))
        return self._number

    async def answer(self) -> Answer:
        _, body = await frame(self.stream)
        return msgspec.json.decode(body, type=Answer)

    async def __call__(self, method: str, **params: Any) -> Any:
        number = self.ask(method, **params)
        answer = await self.answer()
        assert answer.id == number
        if answer.error is not None:
            raise Refused(answer.error)
        return msgspec.json.decode(answer.result or b"null", type=METHODS[method][1])


class Session:
    """A channels stream, as a Jupyter client uses it."""

    def __init__(self, stream: FrameStream, session: str, head: int) -> None:
        self.stream = stream
        self.session = session
        self.head = head
        self.got: list[Got | dict[str, Any]] = []

    def send(self, channel: str, kind: str, content: dict[str, Any], **options: Any) -> str:
        msg_id = options.get("msg_id") or uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": kind,
            "session": options.get("session", self.session),
            "username": "u",
            "date": "2026-01-01T00:00:00Z",
            "version": "5.4",
        }
        parent = options.get("parent", {})
        metadata = options.get("metadata", {})
        parts = [json.dumps(part).encode() for part in (header, parent, metadata, content)]
        self.stream.send(FrameKind.KERNEL, pack(channel, parts))
        return msg_id

    def execute(self, code: str, **options: Any) -> str:
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": options.pop("allow_stdin", False),
            "stop_on_error": options.pop("stop_on_error", True),
        }
        return self.send("shell", "execute_request", content, **options)

    def ack(self, seq: int) -> None:
        self.stream.send(FrameKind.JSON, json.dumps({"ack": seq}).encode())

    async def next(self) -> Got | dict[str, Any]:
        got = decoded(*await frame(self.stream))
        self.got.append(got)
        return got

    async def message(self) -> Got:
        got = await self.next()
        assert isinstance(got, Got), got
        return got

    async def until(self, wanted: Callable[[Got], bool]) -> Got:
        while True:
            got = await self.next()
            if isinstance(got, Got) and wanted(got):
                return got

    async def finish(self, msg_id: str) -> list[Got]:
        """Everything about an execution up to its reply and idle."""
        (mine,) = await self.finish_all([msg_id])
        return mine

    async def finish_all(self, msg_ids: list[str]) -> list[list[Got]]:
        """The same for several at once: one's reply may come after the next one's idle."""
        of: dict[str, list[Got]] = {msg_id: [] for msg_id in msg_ids}
        while not all(is_over(messages) for messages in of.values()):
            got = await self.next()
            if isinstance(got, Got) and got.parent.get("msg_id") in of:
                of[got.parent["msg_id"]].append(got)
        return list(of.values())

    async def run_control(self) -> None:
        """Returns when the agent has read everything that was sent before."""
        self.send("control", "kernel_info_request", {})
        await self.until(lambda got: got.kind == "kernel_info_reply")

    async def run(self, code: str, **options: Any) -> list[Got]:
        return await self.finish(self.execute(code, **options))


def is_over(messages: list[Got]) -> bool:
    """Whether both signs of an execution's end are there."""
    replied = any(got.kind == "execute_reply" for got in messages)
    idle = any(got.kind == "status" and got.content["execution_state"] == "idle" for got in messages)
    return replied and idle


def reply(messages: list[Got]) -> Got:
    """The reply among them, of which there is one."""
    (found,) = [got for got in messages if got.kind == "execute_reply"]
    return found


def end_of(messages: list[Got]) -> str:
    """The honest word."""
    found = reply(messages)
    return str(found.metadata.get("llmsafespace", {}).get("end") or found.content["status"])


def text(messages: list[Got], name: str = "stdout") -> str:
    """What was printed."""
    parts = [got.content["text"] for got in messages if got.kind == "stream" and got.content["name"] == name]
    return "".join(parts)


@dataclass
class AgentProcess:
    """An agent and what its tests need of it."""

    folder: Path
    config: dict[str, Any]
    process: subprocess.Popen[bytes]
    streams: list[FrameStream] = field(default_factory=list)
    context: str = ""
    calls: Any = None  # the rpc stream of a bound agent

    @property
    def workspace(self) -> Path:
        return Path(self.config["workspace"])

    async def dial(self) -> FrameStream:
        """A connection that has proved nothing yet."""
        loop = asyncio.get_running_loop()
        listen = self.config["listen"]
        deadline = loop.time() + DEADLINE
        while True:
            assert self.process.poll() is None, "the agent has ended"
            try:
                if "unix" in listen:
                    _, stream = await loop.create_unix_connection(FrameStream, listen["unix"])
                else:
                    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                    tls.check_hostname = False
                    tls.verify_mode = ssl.CERT_NONE
                    _, stream = await loop.create_connection(
                        FrameStream, "127.0.0.1", listen["port"], ssl=tls
                    )
            except (FileNotFoundError, ConnectionRefusedError):
                assert loop.time() < deadline, "the agent does not listen"
                await asyncio.sleep(0.01)
                continue
            self.streams.append(stream)
            return stream

    async def open(self, kind: str, **fields: Any) -> tuple[FrameStream, dict[str, Any]]:
        """A stream for `kind`, and the agent's `Opened`. Raises Refused."""
        stream = await self.dial()
        await prove_as_gateway(stream, bytes.fromhex(TOKEN), {"kind": kind, **fields})
        opened = await document(stream)
        if "error" in opened:
            raise Refused(msgspec.convert(opened["error"], Error))
        return stream, opened

    async def rpc(self) -> Rpc:
        stream = await self.dial()
        await prove_as_gateway(stream, bytes.fromhex(TOKEN), msgspec.to_builtins(OpenRpc()))
        await document(stream)
        return Rpc(stream)

    async def bind(self, rpc: Rpc, **options: Any) -> Any:
        self.context = options.setdefault("contextId", str(uuid.uuid4()))
        options.setdefault("claimId", "claim-1")
        options.setdefault("sandboxId", "sb-1")
        return await rpc("bind", **options)

    async def session(self, session: str | None = None, **fields: Any) -> Session:
        session = session or uuid.uuid4().hex
        fields.setdefault("context", self.context)
        stream, opened = await self.open("channels", session=session, **fields)
        return Session(stream, session, opened.get("head", 0))

    async def execution(self, execution: str, **fields: Any) -> tuple[list[Any], dict[str, Any]]:
        """Start or follow an execution to its end: its messages, and its account."""
        stream, _ = await self.open("execution", execution=execution, **fields)
        got: list[Any] = []
        while True:
            one = decoded(*await frame(stream))
            if isinstance(one, dict) and "status" in one:
                return got, one
            got.append(one)

    async def exited(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), DEADLINE)


Launch = Callable[..., Awaitable[AgentProcess]]


@pytest_asyncio.fixture
async def launch() -> AsyncIterator[Launch]:
    """Start agents: `await launch(**configuration)`. They and all that is theirs end with the test."""
    started: list[AgentProcess] = []
    folders: list[str] = []

    async def start(pass_fds: tuple[int, ...] = (), **options: Any) -> AgentProcess:
        folder = tempfile.mkdtemp(prefix="lsa-", dir="/tmp")
        folders.append(folder)
        workspace = Path(folder, "workspace")
        workspace.mkdir()
        kernels = [
            {"language": "python", "argv": [sys.executable], "template": True, "displayName": "Python"},
            {"language": "bash", "argv": [sys.executable], "template": True, "displayName": "Bash"},
        ]
        config = {
            "name": "test",
            "token": TOKEN,
            "listen": {"unix": f"{folder}/agent.sock"},
            "kernels": kernels,
            "env": {"PATH": os.environ["PATH"], "HOME": folder, "LANG": "C.UTF-8"},
            "workspace": str(workspace),
            "runDir": f"{folder}/run",
            **options,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "llmsafespace_agent"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        agent = AgentProcess(Path(folder), config, process)
        started.append(agent)
        return agent

    yield start
    for agent in started:
        for stream in agent.streams:
            if not stream.closed:
                with contextlib.suppress(ConnectionError):
                    stream.abort()
        if agent.process.poll() is None:
            agent.process.terminate()
        try:
            await asyncio.wait_for(asyncio.to_thread(agent.process.wait), 20)
        except TimeoutError:
            agent.process.kill()
            agent.process.wait()
            raise
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture
async def agent(launch: Launch) -> AgentProcess:
    """A bound agent."""
    one = await launch()
    rpc = await one.rpc()
    await one.bind(rpc)
    one.calls = rpc
    return one
