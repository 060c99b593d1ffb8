"""Kernel messages that the gateway itself has to say, in the v1 layout.

They are no part of a journal: in the durable subprotocol their sequence number is 0.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from llmsafespace_protocol.kernel_messages import Header, pack

_encode = msgspec.json.Encoder().encode
_REQUEST = "_request"


def _message(
    channel: str, msg_type: str, content: dict[str, Any], parent: bytes | memoryview, session: str
) -> bytes:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": msg_type,
        "username": "gateway",
        "session": session,
        "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "version": "5.4",
    }
    return pack(channel, [_encode(header), parent, b"{}", _encode(content)])


def status(state: str, session: str, parent: bytes | memoryview = b"{}") -> bytes:
    """An iopub `status` message."""
    return _message("iopub", "status", {"execution_state": state}, parent, session)


def stderr(text: str, session: str, parent: bytes | memoryview = b"{}") -> bytes:
    """An iopub `stream` message on stderr."""
    return _message("iopub", "stream", {"name": "stderr", "text": text}, parent, session)


def refusal(
    channel: str,
    request: Header,
    raw_header: bytes | memoryview,
    reason: str,
    name: str = "PermissionDenied",
) -> list[bytes]:
    """The honest answer to a message that its sender may not send, or not now; `name` is the error's.

    A request gets its reply with status error; what has no reply becomes an iopub `error`. Either way an
    `idle` follows, because clients wait for it (Jupyter messaging, "Request-Reply").
    """
    content = {"ename": name, "evalue": reason, "traceback": [reason]}
    raw = bytes(raw_header)
    busy = status("busy", request.session, raw)
    idle = status("idle", request.session, raw)
    if channel in ("shell", "control") and request.msg_type.endswith(_REQUEST):
        reply_type = request.msg_type.removesuffix(_REQUEST) + "_reply"
        reply = _message(channel, reply_type, {"status": "error", **content}, raw, request.session)
        return [busy, reply, idle]
    return [busy, _message("iopub", "error", content, raw, request.session), idle]
