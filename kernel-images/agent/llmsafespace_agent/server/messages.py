"""Kernel messages that the agent makes, and the few fields that it reads (jupyter_client, "Messaging")."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from llmsafespace_protocol.kernel_messages import AGENT_SESSION, UNREADABLE

PROTOCOL_VERSION = "5.4"
END_OF_INPUT = "\x04"  # ipykernel raises EOFError for it
Parts = list[bytes]
_Count = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what every store can hold


class StatusContent(msgspec.Struct):
    """The content of an iopub `status`."""

    execution_state: str = ""


class ReplyContent(msgspec.Struct):
    """What an execute_reply's content says about the end."""

    status: str = ""
    execution_count: _Count | None = None
    ename: str = ""


class _Failure(msgspec.Struct):
    """What stays of a reply that is told as another failure."""

    traceback: list[str] | None = None
    execution_count: _Count | msgspec.UnsetType | None = msgspec.UNSET


class ExecuteContent(msgspec.Struct):
    """What an execute_request's content must have."""

    code: str
    silent: bool = False


class Options(msgspec.Struct):
    """Per-execution options in an execute_request's metadata under `llmsafespace`."""

    timeout: float | None = None
    env: dict[str, str] = {}


class _Metadata(msgspec.Struct):
    llmsafespace: Options | None = None


_statuses = msgspec.json.Decoder(StatusContent)
_replies = msgspec.json.Decoder(ReplyContent)
_failures = msgspec.json.Decoder(_Failure)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_requests = msgspec.json.Decoder(ExecuteContent)
_metadata = msgspec.json.Decoder(_Metadata)
_NO_OPTIONS = Options()


def execution_state(content: bytes) -> str:
    """The state that an iopub `status` tells; '' when it cannot be read."""
    try:
        return _statuses.decode(content).execution_state
    except UNREADABLE:
        return ""


def reply_content(content: bytes) -> ReplyContent:
    """What an execute_reply says; an unreadable one counts as an error."""
    try:
        return _replies.decode(content)
    except UNREADABLE:
        return ReplyContent("error")


def execute_content(content: bytes) -> ExecuteContent:
    """What an execute_request asks. Raises one of UNREADABLE for another content."""
    return _requests.decode(content)


def options_of(metadata: bytes | memoryview) -> Options:
    """The options of an execution. Raises one of UNREADABLE, such as for options of the wrong types."""
    if b"llmsafespace" not in bytes(metadata):
        return _NO_OPTIONS
    return _metadata.decode(metadata).llmsafespace or _NO_OPTIONS


def digest_of(content: bytes, options: Options, context: str, stdin: str | None = None) -> bytes:
    """What makes two requests of one id the same: what they ask and of whom, however it is spelt."""
    plain = [msgspec.json.decode(content), msgspec.to_builtins(options), context, stdin]
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).digest()


def header(msg_type: str, session: str = AGENT_SESSION, msg_id: str | None = None) -> bytes:
    """The header part of a new message."""
    return msgspec.json.encode(
        {
            "msg_id": msg_id or os.urandom(16).hex(),
            "msg_type": msg_type,
            "session": session,
            "username": "llmsafespace",
            "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "version": PROTOCOL_VERSION,
        }
    )


def message(
    msg_type: str, content: dict[str, Any], parent: bytes = b"{}", metadata: dict[str, Any] | None = None
) -> Parts:
    """The parts of a message from the agent."""
    return [header(msg_type), parent, msgspec.json.encode(metadata or {}), msgspec.json.encode(content)]


def status(state: str, parent: bytes = b"{}") -> Parts:
    """An iopub `status`."""
    return message("status", {"execution_state": state}, parent)


def error_content(name: str, text: str) -> dict[str, Any]:
    """The content that an iopub `error` and a reply with status error share."""
    return {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}


def execute_request(code: str, execution: str, session: str, options: Options, allow_stdin: bool) -> Parts:
    """The request of an execution that the agent itself starts.

    One of them that fails must not abort those of other callers, hence `stop_on_error` false.
    """
    given = {key: value for key, value in msgspec.to_builtins(options).items() if value}
    return [
        header("execute_request", session, execution),
        b"{}",
        msgspec.json.encode({"llmsafespace": given} if given else {}),
        msgspec.json.encode(
            {
                "code": code,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": allow_stdin,
                "stop_on_error": False,
            }
        ),
    ]


def input_reply(value: str, parent: bytes, session: str) -> Parts:
    """The answer to an input_request whose header is `parent`."""
    content = {"status": "ok", "value": value}
    return [header("input_reply", session), parent, b"{}", msgspec.json.encode(content)]


def annotated(parts: Parts, end: str) -> Parts:
    """A reply whose metadata says the honest end; everything else stays as the kernel wrote it."""
    return [parts[0], parts[1], _with_end(parts[2], end), *parts[3:]]


def as_failure(parts: Parts, end: str, name: str, text: str) -> Parts:
    """A kernel's reply turned into the failure that it was; count and traceback stay where there are any."""
    content = error_content(name, text)
    try:
        kernels = _failures.decode(parts[3])
    except UNREADABLE:
        kernels = _Failure()
    content["traceback"] = kernels.traceback or content["traceback"]
    if kernels.execution_count is not msgspec.UNSET:
        content["execution_count"] = kernels.execution_count
    content["status"] = "error"
    return [parts[0], parts[1], _with_end(parts[2], end), msgspec.json.encode(content), *parts[4:]]


def _with_end(metadata: bytes, end: str) -> bytes:
    try:
        metadata.decode()  # what is not looked at stays as it is, and must be UTF-8
        known: dict[str, Any] = dict(_members.decode(metadata))
    except UNREADABLE:
        known = {}
    return msgspec.json.encode({**known, "llmsafespace": {"end": end}})
