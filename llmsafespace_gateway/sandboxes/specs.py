"""The one judge of what a sandbox may be asked to be: every door's request passes here first.

What is let through, the layers below take: the egress proxy its rules, the agent its bind, the kernel's
process its environment. A request that only a running sandbox can judge (a folder that is not there, a
package that nobody has) fails there, and leaves nothing behind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from llmsafespace_gateway.egress.rules import to_rules
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.requests import CreateSandbox
from llmsafespace_protocol.environment import early, problem

MAX_LABELS = 64
MAX_PACKAGES = 200
MAX_PACKAGE = 500
MAX_PATH = 4096
MAX_FILE_NAME = 255  # bytes
_BREAKING = ("PYTHON", "LD_")
_NO_KERNEL = "no kernel can be started"  # the agent's words
_ZONE = re.compile(r"[A-Za-z0-9_+\-/]{1,64}")
_HASH_SEED = re.compile(r"random|[0-9]{1,10}")


def check(request: CreateSandbox, prefix: str = "") -> None:
    """Raises ApiError(invalid_request) that names the field, behind `prefix`, and the value."""
    try:
        _check_egress(request)
        _check_env(request.env)
        _check_files(request.files, request.resources.storage)
        _check_packages(request.packages)
        _check_times(request)
        if request.timezone is not None and not _ZONE.fullmatch(request.timezone):
            raise _Wrong("timezone", f"expected a name as Europe/Paris, got {request.timezone[:60]!r}")
        if request.cwd is not None and (len(request.cwd) > MAX_PATH or "\0" in request.cwd):
            raise _Wrong("cwd", f"expected a path of at most {MAX_PATH} characters, got {request.cwd[:60]!r}")
        if len(request.metadata) > MAX_LABELS:
            raise _Wrong("metadata", f"expected at most {MAX_LABELS} entries, got {len(request.metadata)}")
    except _Wrong as wrong:
        field = prefix + wrong.field
        raise ApiError("invalid_request", f"{field}: {wrong}", {"field": field}) from wrong


class _Wrong(Exception):
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def _check_egress(request: CreateSandbox) -> None:
    for index, rule in enumerate(request.egress):
        try:
            to_rules([rule])
        except ValueError as error:  # of which UnicodeError is one
            raise _Wrong(f"networkAccess.egress[{index}].domain", str(error)[:200]) from error


def _check_env(env: Mapping[str, str]) -> None:
    if (found := problem(env)) is not None:
        raise _Wrong("env", found)
    seed = env.get("PYTHONHASHSEED", "")
    if seed and (not _HASH_SEED.fullmatch(seed) or (seed != "random" and int(seed) > 2**32 - 1)):
        raise _Wrong("env.PYTHONHASHSEED", f"expected `random` or 0 to 4294967295, got {seed[:60]!r}")


def _check_files(files: Mapping[str, bytes], storage: int) -> None:
    for path in files:
        if len(path) > MAX_PATH or "\0" in path:
            raise _Wrong(f"files[{path[:60]!r}]", f"expected a path of at most {MAX_PATH} characters")
        for name in path.split("/"):
            try:
                size = len(name.encode())
            except UnicodeEncodeError as error:
                raise _Wrong("files", f"{path[:60]!r} is not valid Unicode") from error
            if size > MAX_FILE_NAME:
                raise _Wrong(f"files[{path[:60]!r}]", f"a name has {size} bytes, at most are {MAX_FILE_NAME}")
        folder = next((folder for folder in _folders(path) if folder in files), None)
        if folder is not None:
            raise _Wrong(f"files[{folder[:60]!r}]", f"is a folder too: {path[:60]!r} is below it")
    total = sum(map(len, files.values()))
    if total > storage:
        raise _Wrong("files", f"{total} bytes do not fit into the {storage} of resources.ephemeralStorage")


def _folders(path: str) -> Iterable[str]:
    """Every folder above a path."""
    while "/" in path[1:]:
        path = path.rpartition("/")[0]
        yield path


def _check_packages(packages: Iterable[str]) -> None:
    for index, package in enumerate(packages):
        if index >= MAX_PACKAGES:
            raise _Wrong("packages", f"expected at most {MAX_PACKAGES}")
        bad = not package.strip() or len(package) > MAX_PACKAGE or package.startswith("-")
        if bad or any(ord(char) < 32 for char in package):
            raise _Wrong(f"packages[{index}]", f"expected a package's name, got {package[:60]!r}")


def _check_times(request: CreateSandbox) -> None:
    for field, value in (
        ("timeout", request.timeout),
        ("idleTimeout", request.idle_timeout),
        ("maxLifetime", request.max_lifetime),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise _Wrong(field, f"expected seconds above 0, got {value}")


def blamed(error: ApiError, env: Mapping[str, str]) -> ApiError:
    """A start that failed, or the variables that broke it: those that the interpreter itself reads."""
    names = sorted(name for name in early(env) if name.startswith(_BREAKING))
    if not names or error.code != "service_unavailable" or _NO_KERNEL not in error.message:
        return error
    message = (
        f"env: no kernel starts with {', '.join(names)[:200]}; leave out what breaks it ({error.message})"
    )
    return ApiError("invalid_request", message, {"field": "env"})
