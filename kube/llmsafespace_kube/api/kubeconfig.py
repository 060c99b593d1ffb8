"""Reads a kubeconfig: the address of the API server, its certificate authority and the credentials.

Supported: several files in KUBECONFIG (the first file that has an entry counts), the current context, and
credentials as a certificate, a token, a token file, or a command that prints them (`exec`, used by managed
clusters). Proxies, passwords and the old built-in `auth-provider` raise ConfigurationError.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import yaml

EXEC_LIMIT = 60.0  # seconds
_API = "client.authentication.k8s.io/"


class ConfigurationError(Exception):
    """The kubeconfig or service account cannot be used; the message says what and why."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for the API server: a token, a file with a token, or a certificate and its key (PEM)."""

    token: str = ""
    token_file: str = ""
    certificate: bytes = b""
    key: bytes = b""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """An API server and the credentials for it. If `authority` (PEM) is empty, the system's are trusted."""

    url: str
    authority: bytes = b""
    verified: bool = True
    server_name: str | None = None
    credentials: Credentials = Credentials()


async def load(paths: str) -> Access:
    """Load the current context of the files in `paths` (as in KUBECONFIG). Raises ConfigurationError."""
    merged = _Merged([Path(path) for path in paths.split(os.pathsep) if path])
    name = merged.current
    if not name:
        raise ConfigurationError("no current-context is set: `kubectl config use-context NAME`")
    context, _ = merged.named("contexts", "context", name)
    cluster, folder = merged.named("clusters", "cluster", str(context.get("cluster")))
    url = cluster.get("server")
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        raise ConfigurationError(
            f"the server of context {name} must be an https:// or http:// URL, got {url!r}"
        )
    if cluster.get("proxy-url"):
        raise ConfigurationError("proxy-url is not supported")
    credentials = Credentials()
    if context.get("user"):
        user, home = merged.named("users", "user", str(context["user"]))
        credentials = await _credentials(user, home, cluster)
    return Access(
        url=url.rstrip("/"),
        authority=_content(cluster, "certificate-authority", folder),
        verified=cluster.get("insecure-skip-tls-verify") is not True,
        server_name=cluster.get("tls-server-name") or None,
        credentials=credentials,
    )


class _Merged:
    """Several files as one. If two have an entry of the same name, the first counts.

    Paths in an entry are relative to its file.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files: list[tuple[dict[str, Any], Path]] = []
        for path in paths:
            try:
                found = yaml.safe_load(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
            if not isinstance(found, dict):
                raise ConfigurationError(f"{path} is not a kubeconfig")
            self._files.append((found, path.parent))
        if not self._files:
            raise ConfigurationError(f"no such file: {os.pathsep.join(map(str, paths))}")

    @property
    def current(self) -> str:
        return next(
            (str(each["current-context"]) for each, _ in self._files if each.get("current-context")), ""
        )

    def named(self, plural: str, what: str, name: str) -> tuple[dict[str, Any], Path]:
        for document, folder in self._files:
            for entry in document.get(plural) or ():
                if isinstance(entry, dict) and entry.get("name") == name:
                    found = entry.get(what)
                    if isinstance(found, dict):
                        return found, folder
        raise ConfigurationError(f"there is no {what} {name!r}")


async def _credentials(user: dict[str, Any], folder: Path, cluster: dict[str, Any]) -> Credentials:
    if user.get("auth-provider") or user.get("username"):
        raise ConfigurationError(
            "auth-provider, username and password are not supported: use exec or a token"
        )
    if isinstance(user.get("exec"), dict):
        return await _executed(user["exec"], folder, cluster)
    file = user.get("tokenFile")
    return Credentials(
        token="" if file else str(user.get("token") or ""),
        token_file=str(folder / file) if file else "",
        certificate=_content(user, "client-certificate", folder),
        key=_content(user, "client-key", folder),
    )


def _content(entry: dict[str, Any], name: str, folder: Path) -> bytes:
    """Return the content of `NAME-data`, or of the file that `NAME` names."""
    try:
        if data := entry.get(f"{name}-data"):
            return base64.b64decode(data, validate=True)
        return (folder / entry[name]).read_bytes() if entry.get(name) else b""
    except (OSError, binascii.Error, ValueError, TypeError) as error:
        raise ConfigurationError(f"{name} cannot be read: {error}") from None


async def _executed(command: dict[str, Any], folder: Path, cluster: dict[str, Any]) -> Credentials:
    """Run an `exec` command and read the ExecCredential that it prints."""
    version = str(command.get("apiVersion", ""))
    if not version.startswith(_API):
        raise ConfigurationError(f"exec has the apiVersion {version!r}, which is not one of {_API}")
    spec: dict[str, Any] = {"interactive": False}
    if command.get("provideClusterInfo"):
        spec["cluster"] = {
            key: value for key, value in cluster.items() if key in ("server", "tls-server-name")
        }
        if authority := cluster.get("certificate-authority-data"):
            spec["cluster"]["certificate-authority-data"] = authority
    exec_info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    environment = {each["name"]: str(each["value"]) for each in command.get("env") or ()}
    name = str(command.get("command", ""))
    program = str(folder / name) if os.sep in name else name
    try:
        async with asyncio.timeout(EXEC_LIMIT):
            process = await asyncio.create_subprocess_exec(
                program,
                *map(str, command.get("args") or ()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(exec_info)},
            )
            try:
                stdout, stderr = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
    except (OSError, TimeoutError) as error:
        why = error or f"it did not end within {EXEC_LIMIT:g} s"
        raise ConfigurationError(f"{name} does not give credentials: {why}") from None
    if process.returncode != 0:
        words = stderr.decode(errors="replace").strip()[-500:]
        raise ConfigurationError(
            f"{name} does not give credentials: {words or f'exit status {process.returncode}'}"
        )
    try:
        status = json.loads(stdout)["status"]
        return Credentials(
            token=str(status.get("token") or ""),
            certificate=str(status.get("clientCertificateData") or "").encode(),
            key=str(status.get("clientKeyData") or "").encode(),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(f"the output of {name} is not an ExecCredential with a status") from None
