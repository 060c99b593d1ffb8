"""Pairs one client websocket with one agent stream: the gateway's hot path.

Nothing here waits in memory: a client that does not read holds its agent stream, and the agent's journal
keeps the messages; an agent that does not read holds the client. A client that does not read the answers to
messages that were refused is not read either.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from llmsafespace_gateway.liveness import Liveness
from llmsafespace_gateway.sandboxes import notices
from llmsafespace_gateway.sandboxes.websocket_frames import TEXT, ByteStream, FrameWriter
from llmsafespace_protocol.frames import FrameError, FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import UNREADABLE, BadKernelMessage, Header, header_of, unpack
from llmsafespace_protocol.requests import Ack, Error, Gap

log = logging.getLogger(__name__)

HIGH_WATER = 512 * 1024
LOW_WATER = 64 * 1024
ACK_EVERY = 64
ACK_DELAY = 0.1
ABORT_AFTER = 0.5

MAX_HEADER = 64 * 1024  # bytes of a message's header, as the agent has it
MAX_NAME = 256  # characters of msg_id and msg_type
_MAX_SESSION = 4096  # characters, as the agent has it

_SEQ = 8
_NOT_JOURNALED = bytes(_SEQ)
_STATUS_MARK = b'"execution_state"'
_STATUS_LIMIT = 4096

Incoming = tuple[str, "bytes | memoryview", bytes]  # channel, raw header, v1 bytes


class CloseCode(enum.IntEnum):
    """Why the gateway closes a kernel websocket (RFC 6455, section 7.4; 44xx are ours, as HTTP's 4xx)."""

    WRONG_FRAME = 1003
    GARBAGE = 1007
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012  # connect again with the same session_id
    KEY_REVOKED = 4401
    KERNEL_GONE = 4410


class WrongFrame(BadKernelMessage):
    """A text frame where the subprotocol wants binary ones."""


class OddMessage(BadKernelMessage):
    """A request that can be told from others, but holds something that is no JSON: it is refused alone."""

    def __init__(self, why: str, channel: str, header: bytes) -> None:
        super().__init__(why)
        self.channel = channel
        self.header = header


class Codec(Protocol):
    """How kernel messages look in the frames of one websocket subprotocol."""

    def to_client(self, body: bytes) -> tuple[int, bytes | memoryview]:
        """The opcode and payload for `u64 seq | v1 bytes`. Raises BadKernelMessage."""

    def from_client(self, message: str | bytes) -> Incoming:
        """The channel, raw header and v1 bytes of a frame. Raises BadKernelMessage and what derives of it."""

    def gap(self, missed: int, resume: int) -> bytes | None:
        """The text frame that tells of lost messages; None where there is none."""

    def error(self, error: Error) -> bytes | None:
        """The text frame that tells of a message that the agent refused; None where there is none."""


class ClientSocket(Protocol):
    """The client's side, as the relay needs it."""

    def close_socket(self, code: int, reason: str) -> None:
        """Send a close frame."""

    def abort_socket(self) -> None:
        """End the connection now."""

    def ping_client(self) -> None:
        """Send a ping frame."""


class _Status(msgspec.Struct):
    execution_state: str


_status = msgspec.json.Decoder(_Status)
_gap = msgspec.json.Decoder(Gap)
_error = msgspec.json.Decoder(Error)


class Relay:
    """One client on one kernel.

    `allowed(channel, msg_type)` says what the client may send. `executing(msg_id, allowed, v1)` hears of each
    execute_request, and answers why it is refused although it is allowed (too many). `refused(error)` hears
    what the agent refuses. `note(state)` hears the kernel's execution states. `why_gone()` is asked when the
    agent's stream was lost: why the kernel is no more, or None when it should still be there.
    """

    def __init__(
        self,
        agent: FrameStream,
        socket: ClientSocket,
        stream: ByteStream,
        codec: Codec,
        session: str,
        *,
        allowed: Callable[[str, str], bool],
        note: Callable[[str], None],
        executing: Callable[[str, bool, bytes], str | None] = lambda msg_id, allowed, v1: None,
        refused: Callable[[Error], None] = lambda error: None,
        why_gone: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._agent = agent
        self._socket = socket
        self._codec = codec
        self._session = session
        self._allowed = allowed
        self._executing = executing
        self._refused = refused
        self._note = note
        self._why_gone = why_gone
        self._loop = asyncio.get_running_loop()
        self._writer = FrameWriter(stream, self._flushed, self._read_on)
        self._to_client = codec.to_client
        self._held = False
        self._behind: asyncio.Future[None] | None = None
        self._missed = 0
        self._flushed_seq = 0
        self._acked = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._liveness = Liveness(
            stream, lambda: self._writer.waiting > 0, socket.ping_client, socket.abort_socket
        )
        self._ended = False
        self._lost: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    def start(self) -> None:
        """Begin to relay."""
        if self._ended:
            return
        self._liveness.start()
        self._agent.on_close = self._agent_closed
        if self._agent.closed:
            self._agent_closed(None)
        else:
            self._agent.receive(self._from_agent)

    @property
    def holds_agent(self) -> bool:
        """True while the client is so far behind that nothing more is read from the agent."""
        return self._held

    @property
    def waits_for_client(self) -> bool:
        """True while the client has so many answers to read that nothing more is read from it."""
        return self._behind is not None

    # -- kernel to client ----------------------------------------------------------------------------

    def _from_agent(self, kind: int, body: bytes) -> None:
        if kind != FrameKind.KERNEL or len(body) < _SEQ:
            self._notice_from_agent(kind, body)
        else:
            self._message_from_agent(body)
        if self._writer.waiting > HIGH_WATER and not self._held:
            self._held = True
            self._agent.hold()

    def _message_from_agent(self, body: bytes) -> None:
        if self._missed:
            self._tell_missed(body)
        try:
            opcode, payload = self._to_client(body)
        except BadKernelMessage as error:
            self.end(CloseCode.INTERNAL, f"the sandbox sent something that is no kernel message: {error}")
            return
        self._writer.send(opcode, payload, int.from_bytes(body[:_SEQ], "big"))
        if len(body) <= _STATUS_LIMIT and _STATUS_MARK in body:
            self._note_status(body)

    def _flushed(self, mark: int) -> None:
        if self._writer.waiting <= LOW_WATER and not self._ended:
            if self._held:
                self._held = False
                self._loop.call_soon(self._agent.release)
            self._read_on()
        if mark <= self._flushed_seq:
            return
        self._flushed_seq = mark
        if mark - self._acked >= ACK_EVERY:
            self._acknowledge()
        elif self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_DELAY, self._acknowledge_late)

    def _acknowledge_late(self) -> None:
        self._ack_timer = None
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._flushed_seq > self._acked:
            self._acked = self._flushed_seq
            self._agent.send(FrameKind.JSON, msgspec.json.encode(Ack(ack=self._acked)))

    def _note_status(self, body: bytes) -> None:
        try:
            channel, parts = unpack(memoryview(body)[_SEQ:])
            if channel == "iopub" and header_of(parts[0]).msg_type == "status":
                self._note(_status.decode(parts[3]).execution_state[:32])
        except (BadKernelMessage, *UNREADABLE):
            return  # not ours to judge: it passes through as it is

    def _notice_from_agent(self, kind: int, body: bytes) -> None:
        try:
            if kind != FrameKind.JSON:
                raise BadKernelMessage(f"a frame of kind {kind}")
            if b'"gap"' in body[:64]:
                self._gap(_gap.decode(body))
            else:
                self._refused_by_agent(_error.decode(body))
        except (BadKernelMessage, *UNREADABLE) as error:
            self.end(CloseCode.INTERNAL, f"the sandbox broke the protocol: {error}")

    def _gap(self, gap: Gap) -> None:
        text = self._codec.gap(gap.gap, gap.resume)
        if text is not None:
            self._writer.send(TEXT, text)
        else:
            self._missed += gap.gap

    def _refused_by_agent(self, error: Error) -> None:
        self._refused(error)
        if error.code != "gone":  # it closes the stream next, and then why_gone() knows more
            self._tell_refused(error, "the sandbox refused a message")

    def _tell_refused(self, error: Error, what: str) -> None:
        text = self._codec.error(error)
        if text is not None:
            self._writer.send(TEXT, text)
        else:
            self._say(notices.stderr(f"[{what}: {error.message}]\n", self._session))

    def _tell_missed(self, body: bytes) -> None:
        """Before the message that follows a gap, as output of the same request: else nobody would show it."""
        missed, self._missed = self._missed, 0
        try:
            parent = bytes(unpack(memoryview(body)[_SEQ:])[1][1])
        except BadKernelMessage:
            parent = b"{}"
        why = "too large, or more than the sandbox keeps for a slow reader"
        lost = f"[{missed} messages were lost here: {why}]\n"
        self._say(notices.stderr(lost, self._session, parent))

    def _say(self, message: bytes) -> None:
        self._writer.send(*self._to_client(_NOT_JOURNALED + message))

    # -- client to kernel ----------------------------------------------------------------------------

    def from_client(self, message: str | bytes) -> Awaitable[None] | None:
        """Take one frame of the client's. What to wait for before the next one, where somebody is behind:
        the agent, or the client itself with the answers to what was refused.
        """
        if self._ended:
            return None
        try:
            channel, raw_header, v1 = self._codec.from_client(message)
            header = header_of(raw_header)
            if not header.msg_id or not header.msg_type:
                raise BadKernelMessage("a message header needs msg_id and msg_type")
            too_large = _too_large(header, raw_header)
        except WrongFrame as error:
            self.end(CloseCode.WRONG_FRAME, str(error))
            return None
        except OddMessage as error:
            self._refuse_odd(error)
            return self._until_read()
        except BadKernelMessage as error:
            self.end(CloseCode.GARBAGE, str(error))
            return None
        if too_large is not None:
            self._tell_refused(too_large, "a message was refused")
            return self._until_read()
        allowed = channel != "iopub" and self._allowed(channel, header.msg_type)
        executes = header.msg_type == "execute_request"
        refused = self._executing(header.msg_id, allowed, v1) if executes else None
        if not allowed or refused is not None:
            self._refuse(channel, header, raw_header, refused)
            return self._until_read()
        try:
            self._agent.send(FrameKind.KERNEL, v1)
        except FrameError as error:
            self.end(CloseCode.TOO_BIG, str(error))
        return None if self._agent.writable else self._agent.drain()

    def _refuse(
        self, channel: str, header: Header, raw_header: bytes | memoryview, too_many: str | None
    ) -> None:
        if too_many is not None:
            for answer in notices.refusal(channel, header, raw_header, too_many, "RateLimited"):
                self._say(answer)
            return
        where = f"{header.msg_type[:80]} on the {channel} channel"
        reason = (
            f"clients do not send {where}"
            if channel == "iopub"
            else f"your key's scopes, or your grant on this sandbox, do not allow {where}"
        )
        for answer in notices.refusal(channel, header, raw_header, reason):
            self._say(answer)

    def _refuse_odd(self, odd: OddMessage) -> None:
        header = header_of(odd.header)
        too_large = _too_large(header, odd.header)
        if too_large is not None:
            self._tell_refused(too_large, "a message was refused")
            return
        for answer in notices.refusal(odd.channel, header, odd.header, str(odd), "InvalidRequest"):
            self._say(answer)

    def _until_read(self) -> Awaitable[None] | None:
        """What to wait for until the client has read most of what it was told; None when it has."""
        if self._ended or self._writer.waiting <= LOW_WATER:
            return None
        if self._behind is None:
            self._behind = self._loop.create_future()
        return self._behind

    def _read_on(self) -> None:
        """Read the client again; where its connection has ended, that is how tornado learns of it."""
        behind, self._behind = self._behind, None
        if behind is not None and not behind.done():
            behind.set_result(None)

    # -- the end -------------------------------------------------------------------------------------

    def _agent_closed(self, error: Exception | None) -> None:
        if not self._ended and self._lost is None:
            self._lost = asyncio.ensure_future(self._explain_loss())

    async def _explain_loss(self) -> None:
        try:
            reason = await self._why_gone()
        except Exception:
            log.exception("why a kernel's stream was lost could not be found out")
            reason = None
        if reason is None:
            self.end(CloseCode.RESTART, "the connection to the sandbox was lost; connect again")
        else:
            self.kernel_gone(reason)

    def kernel_gone(self, reason: str) -> None:
        """Tell the client that its kernel is dead, and close."""
        if not self._ended:
            self._say(notices.status("dead", self._session))
            self.end(CloseCode.KERNEL_GONE, reason)

    def end(self, code: CloseCode, reason: str, *, abort: bool = False) -> None:
        """Close the client's websocket with a code and a reason; `abort` does not wait for its answer."""
        if self._ended:
            return
        self._stop()
        self._socket.close_socket(code, _short(reason))
        if abort:
            self._loop.call_later(ABORT_AFTER, self._socket.abort_socket)

    def client_closed(self) -> None:
        """The client's connection has ended."""
        self._stop()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until the client's connection has ended."""
        await self._closed.wait()

    def _stop(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._writer.close()
        self._read_on()
        self._liveness.stop()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        self._acknowledge()
        self._agent.hold()
        self._agent.close()


def _too_large(header: Header, raw: bytes | memoryview) -> Error | None:
    """Why a header is refused whatever it asks for; the client's call that waits for it is named."""
    if len(raw) > MAX_HEADER:
        return Error("invalid_request", f"a message's header is over the limit of {MAX_HEADER} bytes")
    limits = {"msg_id": MAX_NAME, "msg_type": MAX_NAME, "session": _MAX_SESSION}
    for name, limit in limits.items():
        if len(getattr(header, name)) > limit:
            message = f"the header's {name} must have at most {limit} characters"
            return Error("invalid_request", message, {"execution": header.msg_id})
    return None


def _short(reason: str) -> str:
    """A close frame holds at most 123 bytes of reason (RFC 6455, section 5.5)."""
    return reason.encode()[:123].decode("utf-8", "ignore")
