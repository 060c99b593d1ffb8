"""Executions over one kernel's channel: many at once, each with a stream of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from llmsafespace import messages, patience
from llmsafespace.channel import Channel, check_size
from llmsafespace.decoding import BadMessage
from llmsafespace.errors import GatewayUnavailable, SandboxError, SandboxTimeout
from llmsafespace.events import End, Event
from llmsafespace.messages import Message
from llmsafespace.subscription import IDLE_GRACE, Subscription
from llmsafespace.transport import Transport

log = logging.getLogger("llmsafespace")
_LOOK_EVERY = 10.0  # seconds between two questions how an execution ended
_MOST_LOOKS = 3  # questions that find no end of an overdue execution, while its kernel says something
_PAUSE_AT = 32 * 1024 * 1024  # bytes that may wait for a slow reader before the connection does


class KernelStream:
    """Sends execute_requests to one kernel and hands each its messages. Connects on first use."""

    def __init__(self, transport: Transport, kernel_id: str, *, fresh: bool = False) -> None:
        self.kernel_id = kernel_id
        self.session = messages.new_id()
        # The journal of a kernel that nobody has used yet is read from its start.
        self._channel = Channel(transport, kernel_id, self.session, self, 0 if fresh else None)
        self._pending: dict[str, Subscription] = {}
        self._joined = asyncio.Event()

    async def execute(
        self,
        code: str,
        *,
        msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        allow_stdin: bool = False,
    ) -> Subscription:
        """Send an execute_request; `options` go into its metadata for the sandbox's agent.

        Raises InvalidRequest for one that is too large.
        """
        header = messages.header("execute_request", self.session, msg_id)
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": False,
        }
        metadata = {"llmsafespace": dict(options)} if options else {}
        frame = messages.build("shell", header, content, metadata=metadata)
        check_size(frame)
        subscription = Subscription(header["msg_id"], frame)
        self._pending[subscription.msg_id] = subscription
        self._joined.set()
        if not await self._channel.send(frame):
            self._channel.start()  # it sends what is unanswered as soon as it is connected
        return subscription

    async def reply(self, subscription: Subscription, value: str) -> None:
        """Answer the input_request that an execution waits with. Raises InvalidRequest for a huge answer."""
        header = messages.header("input_reply", self.session)
        content = {"value": value, "status": "ok"}
        frame = messages.build("stdin", header, content, parent=subscription.input_header)
        check_size(frame)
        await self._channel.send_once(frame)

    def forget(self, subscription: Subscription) -> None:
        """Take no more messages for this execution."""
        self._pending.pop(subscription.msg_id, None)
        subscription.taken.set()

    async def quiet(self, seconds: float) -> bool:
        """True when nothing has come for so long, and nothing is on its way (see Channel.quiet)."""
        return await self._channel.quiet(seconds)

    @property
    def held_up(self) -> bool:
        """True while nothing is read, since a reader is behind."""
        return self._channel.held_up

    def overdue(self, subscription: Subscription, limit: float) -> bool:
        """True when the execution should have ended `limit` seconds after it began.

        Its end may be on its way all the same. While it waits for others in its kernel the limit counts from
        the last sign of life of the kernel.
        """
        began = subscription.started_at
        if began is None:
            began = max(self._channel.heard, subscription.made_at)
        return patience.now() - began > limit

    async def close(self) -> None:
        """Close the connection; executions that still run go on in the sandbox."""
        await self._channel.close()
        self.on_lost(SandboxError("the sandbox object was closed while the code ran"))

    # -- the channel's listener

    def on_message(self, message: Message) -> None:
        """Hand a message to the execution that it is about."""
        try:
            pending = self._pending.get(message.parent().msg_id)
        except BadMessage as error:
            log.warning("a message of the sandbox was dropped: %s", error)
            return
        if pending is not None:
            pending.put(message)

    def on_gap(self, missed: int, resume: int) -> None:
        """Tell every execution: nobody knows whose messages were lost."""
        for pending in self._pending.values():
            pending.put_gap(missed, resume)

    def on_refused(self, execution: str, error: SandboxError) -> None:
        """Tell who waits for it; where the sandbox does not say whom, the only one that has not begun."""
        waiting = [each for each in self._pending.values() if each.started_at is None]
        pending = self._pending.get(execution) or (waiting[0] if len(waiting) == 1 else None)
        if pending is not None:
            pending.fail(error)

    def on_lost(self, error: SandboxError) -> None:
        """No execution hears anything more."""
        for pending in list(self._pending.values()):
            pending.fail(error)

    def unanswered(self) -> Iterable[bytes]:
        """The requests that have no reply: the sandbox runs each id once."""
        return [pending.frame for pending in self._pending.values() if not pending.answered]

    @property
    def wanted(self) -> bool:
        """An idle stream connects again with its next execution."""
        return bool(self._pending)

    async def ready_for_more(self) -> None:
        """Wait while the only execution's reader is far behind: the sandbox keeps the rest."""
        while len(self._pending) == 1:
            (pending,) = self._pending.values()
            if pending.size < _PAUSE_AT:
                return
            pending.taken.clear()
            self._joined.clear()
            waits = [asyncio.ensure_future(event.wait()) for event in (pending.taken, self._joined)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


async def watch(
    stream: KernelStream,
    subscription: Subscription,
    limit: float | None,
    look_up: Callable[[], Awaitable[End | None]],
    rest: Callable[[int], AsyncGenerator[Sequence[Event], None]],
) -> None:
    """Make sure that an execution's stream ends: by itself, or by `limit` seconds without an end.

    `look_up` asks the gateway for the end when a gap may have swallowed it, or when it is overdue;
    `rest(after)` reads the execution's events behind a sequence number from the gateway, to the end.
    Raises nothing; a subscription that is overdue fails with SandboxTimeout.

    On a quiet stream what has not come will not come. On one that is not, the end may be on its way, behind
    output that must not be cut off; or it is lost, and the code left a thread that prints for ever. The
    gateway knows where the execution's output ends, so the rest is read there.
    """
    looked: float | None = None  # when the gateway was last asked
    doubted: float | None = None  # since when the end may be lost
    found_none = 0
    while not subscription.over:
        await asyncio.sleep(min(1.0, limit or 1.0))
        overdue = limit is not None and stream.overdue(subscription, limit)
        if not (overdue or subscription.half_ended or subscription.gap):
            doubted = None
            continue
        now = patience.now()
        doubted = now if doubted is None else doubted
        quiet = await stream.quiet(min(IDLE_GRACE, limit or IDLE_GRACE))
        if quiet and subscription.settle():
            continue
        since = looked if quiet else max(doubted, looked or doubted)
        if not (quiet and overdue) and since is not None and now - since < _LOOK_EVERY:
            continue
        looked = now
        try:
            end = await look_up()
        except (GatewayUnavailable, SandboxTimeout):
            continue  # the connection breaks as well, or somebody answers next time
        if end is not None:
            if not quiet:
                await _read_rest(stream, subscription, rest)
            if not subscription.over:
                subscription.finish(end)
        elif overdue and not stream.held_up:
            found_none += 1
            if quiet or found_none >= _MOST_LOOKS:
                subscription.fail(
                    SandboxTimeout(
                        f"execution {subscription.msg_id} gave no sign of its end within {limit:g} s; "
                        "attach() to it to see what it does"
                    )
                )


async def _read_rest(
    stream: KernelStream,
    subscription: Subscription,
    rest: Callable[[int], AsyncGenerator[Sequence[Event], None]],
) -> None:
    """Take the rest of an execution's events from elsewhere than its kernel's stream."""
    stream.forget(subscription)
    try:
        async with contextlib.aclosing(rest(subscription.reached)) as batches:
            async for batch in batches:
                await subscription.add(batch)
    except GatewayUnavailable as error:
        subscription.fail(error)
    except SandboxError:
        return  # its output is no more; its end is known
