"""Runs code in a sandbox's kernels: which kernel, over which stream, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsafespace import requests, values
from llmsafespace.contexts import AsyncContexts, ContextLike, id_of
from llmsafespace.errors import GatewayUnavailable, SandboxEnded, SandboxError, SandboxTimeout
from llmsafespace.event_stream import check_alive, follow
from llmsafespace.events import End, Event, end_from_json
from llmsafespace.kernel_stream import KernelStream, watch
from llmsafespace.leaving import Leaving
from llmsafespace.messages import new_id
from llmsafespace.models import SandboxInfo
from llmsafespace.outputs import AsyncOutput
from llmsafespace.results import ExecutionError
from llmsafespace.subscription import Subscription
from llmsafespace.transport import API, Transport, segment

Code = Any  # text, or an object with text in it (values.code_text); the type of LangChain's is not ours
GRACE = 30.0  # seconds that the sandbox has, beyond an execution's timeout, to report its end


@dataclass(frozen=True)
class RunOptions:
    """How one piece of code runs."""

    language: str | None = None
    context: ContextLike | None = None
    timeout: float | None = None
    env: Mapping[str, str] | None = None
    allow_stdin: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidRequest for values that no sandbox takes."""
        object.__setattr__(self, "timeout", values.seconds(self.timeout, "timeout"))
        object.__setattr__(self, "env", values.environment(self.env, longest=None))
        if self.language is not None:
            object.__setattr__(self, "language", values.plain(self.language, "language"))
        if self.context is not None:
            object.__setattr__(self, "context", id_of(self.context))

    def for_agent(self) -> dict[str, Any]:
        """The part that the sandbox's agent and kernel act on."""
        options: dict[str, Any] = {}
        if self.timeout is not None:
            options["timeout"] = float(self.timeout)
        if self.env:
            options["env"] = dict(self.env)
        return options


class Runner:
    """The streams to a sandbox's kernels, and the contexts made for other languages."""

    def __init__(
        self,
        transport: Transport,
        info: SandboxInfo,
        contexts: AsyncContexts,
        leaving: Leaving,
    ) -> None:
        self.timeout = info.timeout
        self._language = requests.language(info.runtime.partition(":")[0])
        self._transport = transport
        self._sandbox_id = info.id
        self._base = f"{API}/sandboxes/{segment(info.id)}"
        self._contexts = contexts
        self._streams: dict[str, KernelStream] = {}
        self.leaving = leaving

    def stream(self, kernel_id: str, *, fresh: bool = False) -> KernelStream:
        """The stream to a kernel; `fresh` when nobody has used the kernel yet."""
        stream = self._streams.get(kernel_id)
        if stream is None:
            stream = self._streams[kernel_id] = KernelStream(self._transport, kernel_id, fresh=fresh)
        return stream

    def output(self, code: Code, options: RunOptions) -> AsyncOutput:
        """The output of code, which starts when it is first asked for. Raises TypeError, InvalidRequest."""
        run = _Run(self, values.code_text(code), options)
        return AsyncOutput(run.id, run.batches(), run.answer, run.detach)

    async def stream_for(self, options: RunOptions) -> KernelStream:
        """The stream to the context that the options ask for."""
        if options.context is not None:
            return self.stream(id_of(options.context))
        wanted = requests.language(options.language) if options.language else self._language
        if wanted == self._language:
            return self.stream(await self._contexts.default_id())
        return self.stream((await self._contexts.of_language(wanted)).id)

    async def look_up(self, execution_id: str) -> End | None:
        """How the gateway says that an execution ended; None while it runs or when nobody knows.

        Raises GatewayUnavailable or SandboxTimeout when the gateway does not answer.
        """
        path = f"{self._base}/executions/{segment(execution_id)}"
        try:
            document = await self._transport.request("GET", path)
        except (GatewayUnavailable, SandboxTimeout):
            raise
        except SandboxError:
            return None
        return end_from_json(document) if document.get("end") else None

    async def check_alive(self, end: str) -> None:
        """Raise SandboxEnded when code that ended like this did so with its sandbox."""
        await check_alive(self._transport, self._base, end)

    def rest(self, execution_id: str, after: int) -> AsyncGenerator[Sequence[Event], None]:
        """The events of an execution behind a sequence number, not over its kernel's stream."""
        return follow(self._transport, self._sandbox_id, execution_id, after=after)

    async def close(self) -> None:
        """Close all streams."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            await stream.close()


class _Run:
    """One run of code, from its request to its end."""

    def __init__(self, runner: Runner, code: str, options: RunOptions) -> None:
        self.id = new_id()
        self._runner = runner
        self._code = code
        self._options = options
        self._stream: KernelStream | None = None
        self._subscription: Subscription | None = None
        self._detached = False

    def detach(self) -> None:
        """Let the code go on when its events are left."""
        self._detached = True

    async def batches(self) -> AsyncIterator[Sequence[Event]]:
        """The events as they come. Leaving before the end interrupts the code."""
        options = self._options
        stream = self._stream = await self._runner.stream_for(options)
        subscription = self._subscription = await stream.execute(
            self._code, msg_id=self.id, options=options.for_agent(), allow_stdin=options.allow_stdin
        )
        timeout = options.timeout if options.timeout is not None else self._runner.timeout
        watcher = asyncio.ensure_future(
            watch(
                stream,
                subscription,
                None if timeout is None else timeout + GRACE,
                lambda: self._runner.look_up(self.id),
                lambda after: self._runner.rest(self.id, after),
            )
        )
        try:
            while True:
                batch = await subscription.batch()
                if isinstance(batch[-1], End):
                    await self._runner.check_alive(batch[-1].end)
                yield batch
                if isinstance(batch[-1], End):
                    return
        except SandboxEnded as error:
            end = _end_with_sandbox(error)
            if end is None:
                raise
            subscription.finish(end)
            yield [end]
        finally:
            watcher.cancel()
            stream.forget(subscription)
            if not subscription.over and not self._detached:
                await self._runner.leaving.code(self.id)

    async def answer(self, line: str) -> None:
        """Answer the code's input request."""
        if self._stream is not None and self._subscription is not None:
            await self._stream.reply(self._subscription, line)


def _end_with_sandbox(error: SandboxEnded) -> End | None:
    """How an execution ended whose sandbox is no more; None when the sandbox was simply terminated."""
    names = {"expired": "SandboxExpired", "oom": "OutOfMemory", "timeout": "ExecutionTimeout"}
    if error.end not in names:
        return None
    return End(error.end, None, ExecutionError(names[error.end], error.message), 1)
