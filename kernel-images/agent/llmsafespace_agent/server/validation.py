"""Checks of what a peer asks for, each with a message that says what is wrong."""

from __future__ import annotations

import base64
import errno
import math
import os
import re
from collections.abc import Mapping

from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.server.errors import invalid
from llmsafespace_protocol.environment import problem
from llmsafespace_protocol.limits import MAX_ARGUMENT

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_ZONE = re.compile(r"[A-Za-z0-9_+\-/:,.<>]{1,64}")
_EGRESS_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,32768}")
_LONGEST = 366 * 86400.0


def identifier(value: str, what: str) -> str:
    """An id made by the caller: 1 to 128 letters, digits and `._:@-`."""
    if not _ID.fullmatch(value):
        raise invalid(f"{what} must be 1 to 128 letters, digits and ._:@- and begin with a letter or digit")
    return value


def egress_token(value: str | None) -> None:
    """A token that fits into one line."""
    if value is not None and not _EGRESS_TOKEN.fullmatch(value):
        raise invalid("egressToken must be 1 to 32768 letters, digits and ._-")


def text(value: str, what: str, limit: int) -> str:
    """A string without NUL of at most `limit` characters."""
    if len(value) > limit or "\0" in value:
        raise invalid(f"{what} must have at most {limit} characters and no NUL")
    return value


def argument(value: str, what: str) -> str:
    """A program's argument, as the system takes it."""
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_ARGUMENT:
        raise invalid(f"{what} has {size} bytes, at most {MAX_ARGUMENT} are possible; put it into a file")
    return text(value, what, MAX_ARGUMENT)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that a kernel can be given."""
    if (found := problem(env, longest=None)) is not None:
        raise invalid(f"env: {found}")
    return dict(env)


def duration(value: float | None, what: str) -> float | None:
    """Seconds above zero and at most a year, or None."""
    if value is None:
        return None
    if not math.isfinite(value) or not 0 < value <= _LONGEST:
        raise invalid(f"{what} must be more than 0 and at most {_LONGEST:g} seconds")
    return float(value)


def timezone(value: str | None) -> str | None:
    """The name of a time zone, as `Europe/Berlin`, or None."""
    if value is not None and (not _ZONE.fullmatch(value) or ".." in value or value.startswith("/")):
        raise invalid(f"timezone: {value[:80]!r} is no name of a time zone")
    return value


def input_bytes(data: str, encoding: str) -> bytes:
    """What is written to standard input: text, or any bytes as base64. Raises AgentError."""
    if encoding == "utf-8":
        return data.encode()
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise invalid(f"stdin is not base64: {error}") from error


def working_folder(value: str | None, workspace: str, inside: Inside) -> str:
    """An existing folder of the sandbox; relative ones are taken from the workspace, which is the default.

    A folder beneath the workspace that is missing is made.
    """
    if value is None or value == "":
        return workspace
    path = os.path.normpath(os.path.join(workspace, text(value, "cwd", 4096)))
    problem = inside.folder_error(path)
    if problem == 0:
        return path
    if not path.startswith(workspace.rstrip("/") + "/"):
        kind = errno.errorcode.get(problem, "EIO")
        raise invalid(f"cwd: {path[:200]} is no folder of this sandbox", cwd=path[:200], kind=kind)
    try:
        inside.make_folders(path)
    except OSError as error:
        kind = errno.errorcode.get(error.errno or 0, "EIO")
        raise invalid(
            f"cwd: {path[:200]} cannot be made: {error.strerror}", cwd=path[:200], kind=kind
        ) from error
    return path
