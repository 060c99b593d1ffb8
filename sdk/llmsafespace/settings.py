"""Which gateway to speak to, and as whom."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmsafespace.errors import AuthenticationError, InvalidRequest, SandboxError

URL_VARIABLE = "LLMSAFESPACE_API_URL"
KEY_VARIABLE = "LLMSAFESPACE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8080"
_NO_HOSTS = ("http", "https", "ws", "wss", "unix")  # `http:/host` would be one of this name
_HOST = re.compile(r"[\w.:%-]*[\w:][\w.:%-]*")  # names in any alphabet, addresses of both kinds


@dataclass(frozen=True)
class Endpoint:
    """A gateway: its base URL and a key, or the unix socket of a private one (which wants no key)."""

    url: str
    key: str | None = None
    socket: str | None = None

    @property
    def websocket_url(self) -> str:
        """The base URL for websockets."""
        return "ws" + self.url.removeprefix("http")

    @property
    def is_local(self) -> bool:
        """True for a unix socket or a loopback address, which no proxy may get between."""
        return self.socket is not None or _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def headers(self) -> dict[str, str]:
        """The authorization header, when there is a key."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def __repr__(self) -> str:
        return f"Endpoint({self.socket or self.url!r})"


def explicit_endpoint(api_url: str | None = None, api_key: str | None = None) -> Endpoint | None:
    """The endpoint from arguments and environment; None when neither says anything (embedded mode).

    An argument that is given counts, also when it is empty (a variable that was not set, say): it is refused
    and never replaced by the environment's, which may be somebody else's. `unix:///path` names a gateway's
    unix socket. Raises InvalidRequest for an URL that is none, and AuthenticationError when there is a URL
    but no key, or a key that cannot be one.
    """
    url = os.environ.get(URL_VARIABLE) or None if api_url is None else api_url
    key = os.environ.get(KEY_VARIABLE) or None if api_key is None else api_key
    if url is None and key is None:
        return None
    url = DEFAULT_URL if url is None else url.strip()
    if key is not None:
        _check_key(key, KEY_VARIABLE if api_key is None else "api_key")
    if url.startswith("unix://"):
        return Endpoint("http://localhost", key, url.removeprefix("unix://").rstrip("/"))
    url = base_url(url)
    if key is None:
        raise AuthenticationError(f"no API key for {url}: pass api_key=, or set {KEY_VARIABLE}")
    return Endpoint(url, key)


def base_url(text: str) -> str:
    """The base URL of a gateway from an URL as people paste it: of its API, its documentation, a websocket.

    Without a scheme only this machine is taken, over plain HTTP. Raises InvalidRequest saying what to write;
    the message shows no query and no password, which may be secret.
    """
    text = text.strip().strip("'\"<>")
    scheme, slashes, rest = text.partition("://")
    if not slashes:
        scheme, rest = "", text.removeprefix("//")
    scheme = {"ws": "http", "wss": "https"}.get(scheme.lower(), scheme.lower())
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    shown = f"{scheme}{slashes}{host}{'' if port is None else f':{port}'}{parts.path}" if host else text
    if scheme not in ("", "http", "https") or not _HOST.fullmatch(host) or host in _NO_HOSTS:
        raise InvalidRequest(f"{shown!r} is not the URL of a gateway: give one like {DEFAULT_URL}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidRequest(
            f"{shown!r}: the URL of a gateway has no user, query or fragment; "
            f"pass a key as api_key=, or set {KEY_VARIABLE}"
        )
    if not scheme and not _is_loopback(host):
        place = f"{parts.netloc}{parts.path}"
        raise InvalidRequest(f"{text!r} has no scheme: write https://{place}, or http://{place}")
    return f"{scheme or 'http'}://{parts.netloc}{_without_api(parts.path)}"


def _without_api(path: str) -> str:
    """The path of an URL without what the gateway serves beneath its base."""
    path = re.sub("/{2,}", "/", path).rstrip("/")
    return re.sub(r"/(api(/v1(/.*)?|/kernels(/.*)?|/kernelspecs)?|docs|healthz|readyz|metrics)$", "", path)


def _check_key(key: str, name: str) -> None:
    """Raises AuthenticationError for what cannot be a key, without showing it."""
    if not key:
        raise AuthenticationError(
            f"{name} is empty: pass an API key, or leave it out to use {KEY_VARIABLE}", code="unauthorized"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise AuthenticationError(
            f"{name} has characters that no API key has: is there a space or a line break around it?",
            code="unauthorized",
        )


def require_gateway_package() -> None:
    """Check that a private gateway can be started. Raises SandboxError saying what to set otherwise."""
    if importlib.util.find_spec("llmsafespace_gateway") is None:
        raise SandboxError(
            f"no gateway to speak to: set {URL_VARIABLE} and {KEY_VARIABLE}, "
            "or install llmsafespace-gateway here, so that a private one can be started"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
