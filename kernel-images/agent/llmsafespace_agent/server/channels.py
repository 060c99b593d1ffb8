"""The channels stream: all channels of one context for one client session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmsafespace_agent.server import messages, validation
from llmsafespace_agent.server.errors import AgentError, invalid
from llmsafespace_agent.server.executions import Execution
from llmsafespace_agent.server.journal import Entry
from llmsafespace_agent.server.kernel_sink import KernelSink
from llmsafespace_agent.server.messages import Options, Parts
from llmsafespace_agent.server.principals import session_key
from llmsafespace_agent.server.reader import Reader
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import (
    UNREADABLE,
    BadKernelMessage,
    Header,
    header_of,
    unpack,
)
from llmsafespace_protocol.requests import Ack, Error, OpenChannels, Opened

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent

_MAX_HEADER = 64 * 1024
_MAX_ALIASES = 64
_MAX_SESSION = 4096
_MAX_ADOPTED = 4096
_acks = msgspec.json.Decoder(Ack)


class ChannelsStream:
    """Serves one client session of one context until the stream ends. Raises AgentError when it cannot."""

    def __init__(self, agent: Agent, stream: FrameStream, open_: OpenChannels) -> None:
        self._agent = agent
        self._stream = stream
        self._durable = open_.durable
        self._context = agent.contexts.get(open_.context)
        self._principal = validation.text(open_.principal, "principal", 256)
        self._session = session_key(self._principal, validation.text(open_.session, "session", 256))
        self._sessions = self._context.aliases(self._session)
        self._adopted: set[str] = set()  # executions of other sessions that this one sent again
        after = self._start(open_.after)
        self._reader = Reader(self._context.journal, stream, KernelSink(stream), after, self._wanted)

    def start(self) -> None:
        """Answer `Opened`, then go live."""
        self._context.connections += 1
        self._context.on_removed.append(self._removed)
        self._stream.on_close = self._closed
        self._stream.send(FrameKind.JSON, msgspec.json.encode(Opened(head=self._context.journal.head)))
        self._reader.start()
        self._stream.receive(self._frame)

    def _start(self, after: int | None) -> int:
        if after is None:
            after = self._context.cursor(self._session)
            if after is None:  # a new session starts live, and goes on from here when it comes back
                after = self._context.journal.head
                self._context.advance(self._session, after)
        return after

    def _wanted(self, entry: Entry) -> bool:
        return not entry.to or entry.to in self._sessions or entry.about in self._adopted

    # -- frames from the gateway -----------------------------------------------------------------

    def _frame(self, kind: int, body: bytes) -> None:
        try:
            if kind == FrameKind.KERNEL:
                self._message(body)
            elif kind == FrameKind.JSON:
                self._context.advance(self._session, _acks.decode(body).ack)
            else:
                raise invalid(f"a channels stream takes no frames of kind {kind}")
        except (BadKernelMessage, *UNREADABLE, AgentError) as error:
            self._refuse(_refusal(error))

    def _refuse(self, error: AgentError) -> None:
        self._stream.send(FrameKind.JSON, msgspec.json.encode(error.on_wire()))

    def _message(self, body: bytes) -> None:
        channel, views = unpack(body)
        if channel == "iopub":
            raise invalid("iopub carries messages of the kernel only")
        if len(views[0]) > _MAX_HEADER or len(views[1]) > _MAX_HEADER:
            raise invalid(f"a message's header is over the limit of {_MAX_HEADER} bytes")
        head = header_of(views[0])
        try:
            self._request(channel, [bytes(view) for view in views], head)
        except (BadKernelMessage, *UNREADABLE, AgentError) as error:
            # The client waits for an answer to this very message: say which one it is.
            refused = _refusal(error)
            details = {**refused.details, "execution": head.msg_id}
            raise AgentError(refused.code, refused.message, details) from error

    def _request(self, channel: str, parts: Parts, head: Header) -> None:
        session = session_key(
            self._principal, validation.text(head.session, "the header's session", _MAX_SESSION)
        )
        if session not in self._sessions:
            if len(self._sessions) >= _MAX_ALIASES:
                raise invalid(f"one stream serves at most {_MAX_ALIASES} sessions; open another")
            self._sessions.add(session)
        if channel == "shell" and head.msg_type == "execute_request":
            try:
                self._execute(parts, head)
            except AgentError as error:
                if not self._durable and error.code != "conflict":  # plain clients know replies alone
                    asker = self._principal
                    self._context.refuse(channel, parts, head, asker, "InvalidRequest", error.message)
                raise
        else:
            self._context.request(channel, parts, head, self._principal)

    def _execute(self, parts: Parts, head: Header) -> None:
        try:
            content = messages.execute_content(parts[3])
        except UNREADABLE as error:
            raise invalid(f"not an execute_request: {error}") from error
        options = checked_options(parts[2])
        digest = b""
        timeout = options.timeout
        if self._durable:
            validation.identifier(head.msg_id, "the execution's id (msg_id)")
            digest = messages.digest_of(parts[3], options, self._context.id)
            repeated = self._agent.executions.repeated(head.msg_id, digest, self._principal)
            if repeated is not None:
                self._repeat(repeated)
                return
            timeout = self._agent.limits.execution_timeout(timeout)
        execution = Execution(
            id=head.msg_id,
            context=self._context.id,
            session=head.session,
            principal=self._principal,
            header=parts[0],
            accepted=self._context.journal.head,
            digest=digest,
            durable=self._durable,
            silent=content.silent,
            timeout=timeout,
        )
        self._context.execute(parts, execution)

    def _repeat(self, execution: Execution) -> None:
        """The same request again: its messages, with their old numbers, instead of another run."""
        if len(self._adopted) >= _MAX_ADOPTED:
            self._adopted.clear()
        self._adopted.add(execution.id)
        self._reader.replay(execution.accepted + 1, lambda entry: entry.about == execution.id)

    # -- its end ---------------------------------------------------------------------------------

    def _removed(self) -> None:
        gone = Error("gone", "the context was removed", {"context": self._context.id})
        self._stream.send(FrameKind.JSON, msgspec.json.encode(gone))
        self._reader.stop()
        self._stream.close()

    def _closed(self, error: Exception | None) -> None:
        self._reader.stop()
        self._context.connections -= 1
        if self._removed in self._context.on_removed:
            self._context.on_removed.remove(self._removed)
        self._agent.activity()


def _refusal(error: Exception) -> AgentError:
    return error if isinstance(error, AgentError) else invalid(f"not a message for a kernel: {error}")


def checked_options(metadata: bytes) -> Options:
    """The options of an execution. Raises AgentError for bad ones."""
    try:
        options = messages.options_of(metadata)
    except UNREADABLE as error:
        raise invalid(f"metadata.llmsafespace: {error}") from error
    validation.environment(options.env)
    validation.duration(options.timeout, "timeout")
    return options
