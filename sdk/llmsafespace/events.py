"""The events of an execution, and how they are read from kernel messages and from lines of HTTP streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmsafespace.decoding import BadMessage, TooDeep, decode_object
from llmsafespace.errors import SandboxError, error_for
from llmsafespace.results import ExecutionError, Result


@dataclass(frozen=True)
class Event:
    """Something that happened in an execution. attach(after=seq) continues after it."""

    type: ClassVar[str] = "event"
    seq: int = field(default=0, kw_only=True, compare=False)


@dataclass(frozen=True)
class Stdout(Event):
    """Text on standard output, in pieces as it arrives (not lines)."""

    type: ClassVar[str] = "stdout"
    text: str = ""


@dataclass(frozen=True)
class Stderr(Event):
    """Text on standard error."""

    type: ClassVar[str] = "stderr"
    text: str = ""


@dataclass(frozen=True)
class Display(Event):
    """A result: the value of the last line (`result.is_main_result`), or something displayed."""

    type: ClassVar[str] = "display"
    result: Result = field(default_factory=Result)


@dataclass(frozen=True)
class Update(Event):
    """New data for what was displayed before with the same `result.display_id`."""

    type: ClassVar[str] = "update"
    result: Result = field(default_factory=Result)


@dataclass(frozen=True)
class Clear(Event):
    """Clear all output so far, text as well; with `wait`, only when the next output comes."""

    type: ClassVar[str] = "clear"
    wait: bool = False


@dataclass(frozen=True)
class Error(Event):
    """The code raised."""

    type: ClassVar[str] = "error"
    error: ExecutionError = field(default_factory=ExecutionError)


@dataclass(frozen=True)
class Comm(Event):
    """A message of a comm, as widgets send it: `action` is open, msg or close.

    `target` names what the comm is for when it is opened; `buffers` are binary attachments.
    Comms come over a kernel's stream (`run_code`, `stream_code`), not with `attach`.
    """

    type: ClassVar[str] = "comm"
    action: str = "msg"
    comm_id: str = ""
    target: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class InputRequest(Event):
    """The code waits for a line of input."""

    type: ClassVar[str] = "input_request"
    prompt: str = ""
    password: bool = False


@dataclass(frozen=True)
class Gap(Event):
    """`missed` messages were dropped by the sandbox's journal quota before this point."""

    type: ClassVar[str] = "gap"
    missed: int = 0

    @property
    def text(self) -> str:
        """The warning in the execution's logs."""
        return f"[llmsafespace] {self.missed} messages were lost: the sandbox's output quota was exceeded\n"


@dataclass(frozen=True)
class End(Event):
    """The execution has ended; `end` is one of results.ENDS, `error` says why it is not "ok".

    `exit_code` is 0 or 1 for code; a command's own, -N after signal N.
    """

    type: ClassVar[str] = "end"
    end: str = "ok"
    execution_count: int | None = None
    error: ExecutionError | None = None
    exit_code: int = 0


def from_message(msg_type: str, content: dict[str, Any], seq: int = 0) -> Event | None:
    """The event that an iopub (or stdin) message stands for; None for those that carry no output."""
    if msg_type == "stream":
        kind = Stderr if content.get("name") == "stderr" else Stdout
        return kind(str(content.get("text", "")), seq=seq)
    if msg_type in ("execute_result", "display_data"):
        return Display(Result.from_content(content, is_main_result=msg_type == "execute_result"), seq=seq)
    if msg_type == "update_display_data":
        return Update(Result.from_content(content), seq=seq)
    if msg_type == "clear_output":
        return Clear(bool(content.get("wait", False)), seq=seq)
    if msg_type == "error":
        return Error(ExecutionError.from_content(content), seq=seq)
    if msg_type == "input_request":
        return InputRequest(str(content.get("prompt", "")), bool(content.get("password", False)), seq=seq)
    return None


def comm_from_message(
    msg_type: str,
    content: dict[str, Any],
    metadata: dict[str, Any],
    buffers: Sequence[bytes | memoryview],
    seq: int = 0,
) -> Comm | None:
    """The event that a comm_open, comm_msg or comm_close stands for; None for another message."""
    action = {"comm_open": "open", "comm_msg": "msg", "comm_close": "close"}.get(msg_type)
    if action is None:
        return None
    data = content.get("data")
    return Comm(
        action,
        str(content.get("comm_id", "")),
        str(content.get("target_name", "")),
        dict(data) if isinstance(data, Mapping) else {},
        metadata,
        tuple(map(bytes, buffers)),
        seq=seq,
    )


def end_from_reply(content: dict[str, Any], metadata: dict[str, Any], seq: int = 0) -> End:
    """The end in an execute_reply: the one that the agent states, else the reply's status."""
    status = str(content.get("status", "error"))
    status = "aborted" if status == "abort" else status
    ours = metadata.get("llmsafespace")
    word = ours.get("end") if isinstance(ours, dict) else None
    end = str(word) if word else status
    count = content.get("execution_count")
    error = None if end == "ok" else ExecutionError.from_content(content, _NAMES.get(end, "Error"))
    return End(end, count if isinstance(count, int) else None, error, 0 if end == "ok" else 1, seq=seq)


def from_line(line: bytes) -> Event | None:
    """The event in a line of an event stream; None for a heartbeat and for an unknown kind.

    Raises SandboxError for a line that is not JSON, and what the gateway's word means that it cannot go on:
    GatewayUnavailable alone is worth another attempt.
    """
    if not line.strip():
        return None
    try:
        document = decode_object(line)
    except TooDeep as error:
        return unreadable(error)
    except BadMessage as error:
        raise SandboxError(f"the gateway sent a line that is {error}", code="protocol_error") from error
    if document.get("type") == "failure":
        raise error_for(500, {"error": document})
    try:
        return from_json(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SandboxError(
            f"the gateway sent an event that is none: {error!r}", code="protocol_error"
        ) from error


def unreadable(why: BadMessage, seq: int = 0) -> Stderr:
    """What stands in the place of output that cannot be read."""
    return Stderr(f"[llmsafespace] output of the sandbox could not be read: {why}\n", seq=seq)


def from_json(document: Mapping[str, Any]) -> Event | None:
    """The event in one line of the gateway's event stream; None for kinds that this version does not know."""
    document = document.get("event", document)
    seq = int(document.get("seq", 0))
    kind = document.get("type")
    if kind in ("stdout", "stderr"):
        return from_message("stream", {"name": kind, "text": document.get("text", "")}, seq)
    if kind in ("display", "update"):
        result = Result(
            dict(document.get("data") or {}),
            dict(document.get("metadata") or {}),
            bool(document.get("isMainResult", False)),
            document.get("displayId"),
        )
        return Display(result, seq=seq) if kind == "display" else Update(result, seq=seq)
    if kind == "clear":
        return Clear(bool(document.get("wait", False)), seq=seq)
    if kind == "error":
        lines = document.get("traceback") or []
        content = {"ename": document.get("name"), "evalue": document.get("value"), "traceback": lines}
        return Error(ExecutionError.from_content(content), seq=seq)
    if kind == "input_request":
        return InputRequest(str(document.get("prompt", "")), bool(document.get("password")), seq=seq)
    if kind == "gap":
        return Gap(int(document.get("missed", 0)), seq=seq)
    return end_from_json(document) if kind == "end" else None


def end_from_json(document: Mapping[str, Any]) -> End:
    """The end in an event or in the gateway's description of an execution that is over."""
    end = str(document["end"])
    message = str(document.get("message") or "")
    # An "error" is the code's own, which came before, or a command's, whose exit code says it.
    told = end != "ok" and (end != "error" or message)
    error = ExecutionError(_NAMES.get(end, "Error"), message) if told else None
    code = document.get("exitCode")
    count = document.get("executionCount")
    exit_code = code if isinstance(code, int) else int(end != "ok")
    return End(end, count, error, exit_code, seq=int(document.get("seq") or 0))


_NAMES = {
    "aborted": "ExecutionAborted",
    "timeout": "ExecutionTimeout",
    "interrupted": "KeyboardInterrupt",
    "oom": "OutOfMemory",
    "kernel_died": "KernelDied",
    "expired": "SandboxExpired",
}
