"""Jupyter's JSON models, in and out. Unknown fields of requests are ignored, as Jupyter servers do."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services.types import KernelRow, SandboxRow, SessionRow
from llmsafespace_protocol.environment import problem

MAX_TEXT = 4096


class KernelBody(msgspec.Struct):
    """The body of POST /api/kernels; `warm_pool` is ours, the warm pool to take the sandbox from."""

    name: str | None = None
    path: str | None = None
    kernel_id: str | None = None
    env: dict[str, str | int | float | bool | None] | None = None
    warm_pool: str | None = None


class SessionKernel(msgspec.Struct):
    """The kernel of a session's body: an id that exists, or the name of a new one."""

    id: str | None = None
    name: str | None = None


class Notebook(msgspec.Struct):
    """What old clients send in place of path and type."""

    path: str | None = None
    name: str | None = None


class SessionBody(msgspec.Struct):
    """The body of POST and PATCH /api/sessions."""

    path: str | None = None
    name: str | None = None
    type: str | None = None
    kernel: SessionKernel | None = None
    notebook: Notebook | None = None
    env: dict[str, str | int | float | bool | None] | None = None
    warm_pool: str | None = None


def decoded(body: bytes, kind: type[Any]) -> Any:
    """A decoded request body. Raises ApiError(invalid_request) saying where it is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except UnicodeDecodeError as error:
        raise ApiError("invalid_request", "the body is not UTF-8") from error
    except RecursionError as error:
        raise ApiError("invalid_request", "the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise ApiError("invalid_request", f"the body is not valid: {error}") from error


def text(value: str | None, field: str, default: str = "") -> str:
    """A short text. Raises ApiError(invalid_request)."""
    if value is None:
        return default
    if len(value) > MAX_TEXT or "\0" in value:
        raise ApiError("invalid_request", f"{field}: at most {MAX_TEXT} characters, none of them NUL")
    return value


def kernel_uuid(value: str | None) -> str | None:
    """A client-made kernel id as it is written in URLs. Raises ApiError(invalid_request)."""
    if value is None:
        return None
    try:
        return str(uuid.UUID(value))
    except ValueError as error:
        raise ApiError("invalid_request", "kernel_id: must be a UUID, or be left out") from error


def clean_env(env: dict[str, str | int | float | bool | None] | None) -> dict[str, str]:
    """Environment variables as text. They are data: no name in them says who somebody is.

    Raises ApiError(invalid_request) for names and sizes that no process could have.
    """
    if not env:
        return {}
    texts = {
        name: value if isinstance(value, str) else str(value)
        for name, value in env.items()
        if value is not None
    }
    if (found := problem(texts)) is not None:
        raise ApiError("invalid_request", f"env: {found}")
    return texts


def timestamp(seconds: float) -> str:
    """Exactly `%Y-%m-%dT%H:%M:%S.%fZ`, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def kernel_model(row: KernelRow, sandbox: SandboxRow | None = None) -> dict[str, Any]:
    """A kernel. `sandbox` adds an object of ours: which sandbox it is and how it started."""
    model: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "last_activity": timestamp(row.last_activity),
        "execution_state": row.execution_state,
        "connections": row.connections,
    }
    if sandbox is not None:
        model["sandbox"] = {
            "id": sandbox.id,
            "runtime": sandbox.runtime,
            "start": {
                "kind": sandbox.start_kind,
                "reason": sandbox.start_reason,
                "pool": sandbox.start_pool,
                "pool_owner": sandbox.start_pool_owner,
            },
            "warnings": list(sandbox.warnings),
        }
    return model


def session_model(row: SessionRow, kernel: KernelRow, sandbox: SandboxRow | None = None) -> dict[str, Any]:
    """A session and its kernel, with the `notebook` object that old clients read."""
    model: dict[str, Any] = {
        "id": row.id,
        "path": row.path,
        "name": row.name,
        "type": row.type,
        "kernel": kernel_model(kernel, sandbox),
    }
    if row.type == "notebook":
        model["notebook"] = {"path": row.path, "name": row.name}
    return model
