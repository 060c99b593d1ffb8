"""Real kernels without a sandbox: this process plays the agent, and collects their orphans."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from llmsafespace_agent.inside.own import OwnProcesses
from llmsafespace_agent.kernels.factory import Kernels
from llmsafespace_agent.kernels.process import KernelProcess, request
from llmsafespace_protocol.configuration import AgentConfig, KernelKind, Listen, Script

_SET_CHILD_SUBREAPER = 36
_DEADLINE = 60.0


@dataclass
class Outcome:
    """All that one request caused."""

    messages: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    def of(self, msg_type: str) -> list[dict[str, Any]]:
        return [content for _, kind, content in self.messages if kind == msg_type]

    def text(self, stream: str = "stdout") -> str:
        return "".join(content["text"] for content in self.of("stream") if content["name"] == stream)

    @property
    def result(self) -> str:
        return str(self.of("execute_result")[0]["data"]["text/plain"])


class Client:
    """Speaks to one kernel, one request at a time."""

    def __init__(self, kernel: KernelProcess) -> None:
        self.kernel = kernel
        self.exits: list[int] = []
        self.answer_input: str | None = None
        self.busy = asyncio.Event()
        self.dead = asyncio.Event()
        self._outcome = Outcome()
        self._seen: set[str] = set()
        self._done = asyncio.Event()
        self._reply_type = ""
        kernel.on_message = self._on_message
        kernel.on_exit = self._on_exit

    def _on_exit(self, returncode: int) -> None:
        self.exits.append(returncode)
        self.dead.set()
        self._done.set()

    def _on_message(self, channel: str, parts: list[bytes]) -> None:
        header, content = json.loads(parts[0]), json.loads(parts[3])
        msg_type = header["msg_type"]
        self._outcome.messages.append((channel, msg_type, content))
        self._outcome.buffers.extend(parts[4:])
        if msg_type == "input_request":
            self.kernel.send("stdin", request("input_reply", {"value": self.answer_input}))
        elif msg_type == self._reply_type:
            self._outcome.reply = content
            self._seen.add("reply")
        elif msg_type == "status":
            if content["execution_state"] == "busy":
                self.busy.set()
            elif content["execution_state"] == "idle":
                self._seen.add("idle")
        if self._seen >= {"reply", "idle"}:
            self._done.set()

    def begin(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        channel: str = "shell",
        metadata: Any = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        self._outcome, self._seen = Outcome(), set()
        self._done.clear()
        self.busy.clear()
        self._reply_type = msg_type.replace("_request", "_reply")
        if msg_type in ("comm_open", "comm_msg", "comm_close"):
            self._seen.add("reply")
        parts = request(msg_type, content)
        parts[2] = json.dumps(metadata or {}).encode()
        self.kernel.send(channel, [*parts, *buffers])

    async def end(self) -> Outcome:
        await asyncio.wait_for(self._done.wait(), _DEADLINE)
        return self._outcome

    async def until(self, condition: Callable[[Outcome], bool]) -> None:
        """Wait until something that no message tells of."""
        async with asyncio.timeout(_DEADLINE):
            while not condition(self._outcome):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def ask(self, msg_type: str, content: dict[str, Any], *, channel: str = "shell") -> Outcome:
        self.begin(msg_type, content, channel=channel)
        return await self.end()

    def begin_run(self, code: str, *, env: dict[str, str] | None = None, stdin: str | None = None) -> None:
        self.answer_input = stdin
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": stdin is not None,
            "stop_on_error": True,
        }
        self.begin("execute_request", content, metadata={"llmsafespace": {"env": env}} if env else None)

    async def run(self, code: str, *, env: dict[str, str] | None = None, stdin: str | None = None) -> Outcome:
        self.begin_run(code, env=env, stdin=stdin)
        return await self.end()


Take = Callable[..., Awaitable[Client]]


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Orphans of the kernels become children of this process, as in a sandbox."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest_asyncio.fixture
async def inside(subreaper: None) -> AsyncIterator[OwnProcesses]:
    made = OwnProcesses()
    made.start(asyncio.get_running_loop())
    yield made
    made.stop()


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., AgentConfig]:
    """An AgentConfig for kernels of this interpreter."""

    def make(
        *languages: str,
        parked: int = 1,
        packages: list[str] | None = None,
        scripts: dict[str, str] | None = None,
        kinds: list[KernelKind] | None = None,
    ) -> AgentConfig:
        workspace = tmp_path / "workspace"
        workspace.mkdir(exist_ok=True)
        wanted = kinds or [
            KernelKind(language=language, argv=[sys.executable], template=True)
            for language in languages or ("python",)
        ]
        return AgentConfig(
            name="test",
            token="00",
            listen=Listen(),
            kernels=wanted,
            parked=parked,
            preload_packages=packages or [],
            preload_scripts=[Script(name=name, content=text) for name, text in (scripts or {}).items()],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"},
            workspace=str(workspace),
            run_dir=str(tmp_path / "r"),
        )

    return make


@pytest_asyncio.fixture
async def start(
    inside: OwnProcesses, configure: Callable[..., AgentConfig]
) -> AsyncIterator[Callable[..., Any]]:
    """`await start(...)` is a Kernels of `configure(...)`; everything is ended afterwards."""
    made: list[Kernels] = []

    async def begin(*languages: str, **options: Any) -> Kernels:
        kernels = Kernels(configure(*languages, **options), inside)
        made.append(kernels)
        await kernels.start()
        return kernels

    yield begin
    for kernels in made:
        await kernels.close()


@pytest_asyncio.fixture
async def take(start: Callable[..., Any]) -> AsyncIterator[Take]:
    """`await take(kernels, ...)` is a client of a kernel that is ended afterwards."""
    clients: list[Client] = []

    async def begin(kernels: Kernels, language: str | None = None, **binding: Any) -> Client:
        options = {"env": {}, "cwd": None, "timezone": None, **binding}
        client = Client(await kernels.take(language, **options))
        clients.append(client)
        return client

    yield begin
    await asyncio.gather(*(client.kernel.shutdown(0) for client in clients))
