"""Arguments that callers may write in several ways, converted to the form of the REST API."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmsafespace import values
from llmsafespace.errors import InvalidRequest

Content = str | bytes | Path
NetworkAccess = Mapping[str, Any] | Iterable[str] | None
_LANGUAGES = {"py": "python", "python3": "python", "sh": "bash", "shell": "bash"}


def creation(
    *,
    runtime: str | None,
    security_level: str,
    timeout: float | None,
    resources: Mapping[str, Any] | None,
    network_access: NetworkAccess,
    use_warm_pool: bool,
    warm_pool: str | None,
    env: Mapping[str, str] | None,
    files: Mapping[str, Content] | None,
    packages: str | Iterable[str] | None,
    cwd: str | None,
    metadata: Mapping[str, str] | None,
    idle_timeout: float | None,
    max_lifetime: float | None,
) -> dict[str, Any]:
    """The body of POST /sandboxes."""
    body: dict[str, Any] = {
        "securityLevel": security_level,
        "timeout": values.seconds(timeout, "timeout"),
        "useWarmPool": use_warm_pool,
        "idleTimeout": values.seconds(idle_timeout, "idle_timeout"),
    }
    optional: dict[str, Any] = {
        "runtime": runtime,
        "warmPool": warm_pool,
        "resources": camel(resources) if resources else None,
        "networkAccess": network(network_access),
        "env": values.environment(env) or None,
        "files": file_contents(files) if files else None,
        "packages": package_list(packages) if packages else None,
        "cwd": values.optional_path(cwd, "cwd"),
        "metadata": values.texts(metadata, "metadata") or None,
        "maxLifetime": values.seconds(max_lifetime, "max_lifetime"),
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def camel(names: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping with its snake_case names in camelCase."""
    return {_camel(name): value for name, value in names.items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def network(access: NetworkAccess) -> dict[str, Any] | None:
    """`networkAccess` from its own form, or from a list of domains (`host` or `host:port`)."""
    if access is None:
        return None
    if isinstance(access, Mapping):
        return dict(access)
    if isinstance(access, str):
        access = [access]
    return {"egress": [_rule(domain) for domain in access]}


def _rule(domain: str) -> dict[str, Any]:
    host, colon, port = domain.partition(":")
    if colon and not port.isdigit():
        raise InvalidRequest(f"network_access: {domain!r} is not host or host:port")
    return {"domain": host, "ports": [int(port)]} if colon else {"domain": host}


def file_contents(files: Mapping[str, Content]) -> dict[str, Any]:
    """The files of the creation request. Raises InvalidRequest with the file's name."""
    return {
        values.path(path, "files: the path"): file_content(content, path) for path, content in files.items()
    }


def file_content(content: Content, path: str = "") -> str | dict[str, str]:
    """A file for the creation request: text as it is, bytes and local files as base64."""
    if isinstance(content, str):
        return values.plain(content, f"files[{path!r:.80}]", nul=True)
    data = content.read_bytes() if isinstance(content, Path) else values.data(content, f"files[{path!r:.80}]")
    return {"content": base64.b64encode(data).decode("ascii"), "encoding": "base64"}


def package_list(packages: str | Iterable[str]) -> list[str]:
    """`"pandas matplotlib"` or a list, as a list. Raises InvalidRequest when there is none in it."""
    names = shlex.split(packages) if isinstance(packages, str) else list(packages)
    names = [values.plain(name, f"packages[{place}]") for place, name in enumerate(names)]
    if not names:
        raise InvalidRequest("install: name at least one package")
    return names


def language(name: str) -> str:
    """The usual name of a language: `py` is python, `sh` is bash."""
    return _LANGUAGES.get(name.lower(), name.lower())


def command_line(command: str | Iterable[str]) -> str:
    """A shell line; a list of arguments is quoted."""
    return command if isinstance(command, str) else shlex.join(command)
