"""The types that services take and return, for doors: which part of the gateway defines one is not theirs."""

from llmsafespace_gateway.backends.base import (
    EgressRule,
    Profile,
    Quarantined,
    Resources,
    Runtime,
    WarmPoolSpec,
    WarmPoolStatus,
)
from llmsafespace_gateway.backends.progress import Progress, listening
from llmsafespace_gateway.sandboxes.collecting import Collected
from llmsafespace_gateway.sandboxes.events import (
    Display,
    End,
    ErrorEvent,
    Event,
    EventUnion,
    Failure,
    Missed,
    Stderr,
    Stdout,
    Update,
)
from llmsafespace_gateway.sandboxes.executions import moment
from llmsafespace_gateway.sandboxes.relay import Codec, Incoming, OddMessage, Relay, WrongFrame
from llmsafespace_gateway.sandboxes.requests import CreateSandbox
from llmsafespace_gateway.sandboxes.rows import request_digest
from llmsafespace_gateway.sandboxes.specs import check as check_request
from llmsafespace_gateway.sandboxes.websocket_frames import BINARY, TEXT
from llmsafespace_gateway.store.rows import GrantRow, KernelRow, KeyRow, SandboxRow, SessionRow, UserRow

__all__ = [
    "BINARY",
    "TEXT",
    "Codec",
    "Collected",
    "CreateSandbox",
    "Display",
    "EgressRule",
    "End",
    "ErrorEvent",
    "Event",
    "EventUnion",
    "Failure",
    "GrantRow",
    "Incoming",
    "KernelRow",
    "KeyRow",
    "Missed",
    "OddMessage",
    "Profile",
    "Progress",
    "Quarantined",
    "Relay",
    "Resources",
    "Runtime",
    "SandboxRow",
    "SessionRow",
    "Stderr",
    "Stdout",
    "Update",
    "UserRow",
    "WarmPoolSpec",
    "WarmPoolStatus",
    "WrongFrame",
    "check_request",
    "listening",
    "moment",
    "request_digest",
]
