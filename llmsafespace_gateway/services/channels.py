"""Use cases: a client's channels to a kernel, as a Jupyter websocket carries them.

The relay passes messages on and knows no rules. What it asks and tells is answered here: may this client send
that, may it execute now, is the kernel still there. The answer to each execution is in memory: nothing is
awaited for a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from llmsafespace_gateway.access import message_allowed
from llmsafespace_gateway.access.executions import Mark, mark_of
from llmsafespace_gateway.access.principal import SANDBOXES_READ
from llmsafespace_gateway.backends.base import Ended
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.relay import ClientSocket, CloseCode, Codec, Relay
from llmsafespace_gateway.sandboxes.websocket_frames import ByteStream
from llmsafespace_gateway.services.base import Caller, Parts, Service
from llmsafespace_gateway.services.executions import ExecutionService
from llmsafespace_gateway.store import kernels, sandboxes
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.kernel_messages import unpack
from llmsafespace_protocol.requests import ById, Error, OpenChannels

_DIGESTED = 1024 * 1024
_END_GRACE = 2.0
_END_LOOKS = 8
_open: set[Relay] = set()  # of this process


class ChannelService(Service):
    """Opens channels."""

    def __init__(self, parts: Parts, executions: ExecutionService) -> None:
        super().__init__(parts)
        self.executions = executions

    async def open(self, caller: Caller, kernel_id: str, session: str, after: int | None) -> Channels:
        """Channels to a kernel: with the messages after `after`, or from now on. Raises ApiError.

        Who comes through the door `durable` names executions: the same id again is the same execution.
        """
        who = caller.principal
        row, kernel = await self.access.kernel(who, kernel_id, SANDBOXES_READ)
        if row.state == "ended":
            raise ApiError("gone", f"the kernel's sandbox has ended: {row.end}", {"end": row.end})
        level = await self.access.level(who, row)
        durable = caller.door == "durable"
        wanted = OpenChannels(
            context=kernel.id, session=session, after=after, durable=durable, principal=who.user_id
        )
        return Channels(self, caller, row, kernel, level, await self.sandboxes.open(row.id, wanted))

    async def why_gone(self, sandbox_id: str, kernel_id: str) -> str | None:
        """Why the kernel is no more; None when it is there. An end may take a moment to be recorded."""
        gone: str | None = None
        for _ in range(_END_LOOKS):
            row = await sandboxes.get(self.store, sandbox_id)
            if row is None or row.state == "ended":
                return _ended_text(row.end if row is not None else None, row.end_message if row else None)
            if await kernels.get(self.store, row.id, kernel_id) is None:
                return "the kernel was removed"
            try:
                await self.sandboxes.rpc(row.id, "contexts.get", ById(id=kernel_id), _END_GRACE)
                return None
            except ApiError as error:
                gone = error.message if error.code in ("gone", "not_found") else None
            await asyncio.sleep(_END_GRACE / _END_LOOKS)
        return gone


class Channels:
    """One client on one kernel: opened, perhaps relayed, closed."""

    def __init__(
        self,
        service: ChannelService,
        caller: Caller,
        row: SandboxRow,
        kernel: KernelRow,
        level: str | None,
        stream: FrameStream,
    ) -> None:
        self._service = service
        self._caller = caller
        self._scopes = caller.principal.scopes
        self._row = row
        self._kernel = kernel
        self._level = level
        self._stream = stream
        self._relay: Relay | None = None
        self._undo: list[Callable[[], None]] = []

    def relay(self, socket: ClientSocket, stream: ByteStream, codec: Codec, session: str) -> Relay:
        """Begin to pass messages on, until `close`."""
        self._relay = relay = Relay(
            self._stream,
            socket,
            stream,
            codec,
            session,
            allowed=self._allowed,
            note=self._note,
            executing=self._executing,
            refused=self._refused,
            why_gone=self._why_gone,
        )
        service = self._service
        _open.add(relay)
        websockets = service.metrics.websockets.labels("channels")
        websockets.inc()
        service.sandboxes.note_activity(self._kernel.id, connections_delta=1)
        self._undo = [
            service.access.watch(self._caller.principal, self._row, self._level, self._revoked),
            service.sandboxes.on_ended(self._row.id, self._ended),
            relay.client_closed,
            lambda: _open.discard(relay),
            websockets.dec,
            lambda: service.sandboxes.note_activity(self._kernel.id, connections_delta=-1),
        ]
        relay.start()
        return relay

    def close(self) -> None:
        """The client is gone, or was never there."""
        undo, self._undo = self._undo, []
        for step in undo:
            step()
        if self._relay is None:
            self._stream.close()

    # -- what the relay needs ------------------------------------------------------------------------

    def _allowed(self, channel: str, msg_type: str) -> bool:
        return message_allowed(self._scopes, self._level, channel, msg_type)

    def _executing(self, msg_id: str, allowed: bool, v1: bytes) -> str | None:
        """Count and audit an execution; why it is refused, None when it is not."""
        parts = unpack(v1)[1]
        mark = None  # plain Jupyter runs whatever it gets
        if allowed and self._caller.door == "durable":
            mark = _mark(self._kernel.id, parts)
        told = {"size": len(parts[3]), "context": self._kernel.id}
        try:
            self._service.executions.pass_on(self._caller, self._row, msg_id, mark, allowed=allowed, **told)
        except ApiError as error:
            return error.message
        return None

    def _refused(self, error: Error) -> None:
        """The sandbox refuses a message."""
        execution = error.details.get("execution")
        if isinstance(execution, str):
            self._service.executions.refused_by_sandbox(self._caller, self._row, execution, error.code)

    def _note(self, state: str) -> None:
        self._service.sandboxes.note_activity(self._kernel.id, state=state)

    def _why_gone(self) -> Awaitable[str | None]:
        return self._service.why_gone(self._row.id, self._kernel.id)

    def _revoked(self) -> None:
        if self._relay is not None:
            self._relay.end(CloseCode.KEY_REVOKED, "the key, or the grant, is no longer valid", abort=True)

    def _ended(self, ended: Ended) -> None:
        if self._relay is not None:
            self._relay.kernel_gone(_ended_text(ended.end, ended.message))


def _mark(kernel: str, parts: list[memoryview]) -> Mark:
    """What a durable request is. Of a large one only the beginning: the agent compares it whole."""
    relevant = parts[2:4]  # metadata and content
    return mark_of("code", kernel, *((len(part), bytes(part[:_DIGESTED])) for part in relevant))


def _ended_text(end: str | None, message: str | None) -> str:
    text = f"the sandbox has ended: {end or 'lost'}"
    return f"{text} ({message})" if message else text


async def drain() -> None:
    """Close this process's kernel websockets so that clients connect again; returns when all have closed."""
    open_relays = list(_open)
    for relay in open_relays:
        relay.end(CloseCode.RESTART, "the gateway restarts; connect again")
    await asyncio.gather(*(relay.wait_closed() for relay in open_relays))
