"""Listening sockets, taken before anything else is touched: a port that is in use ends the start at once."""

from __future__ import annotations

import errno
import os
import socket
import stat

from tornado.netutil import bind_sockets

from llmsafespace_gateway.errors import ApiError

BACKLOG = 1024
_PROBE = 2.0  # seconds that a server on a unix socket has to take a connection


def listen_tcp(ip: str, port: int) -> list[socket.socket]:
    """Sockets that listen on `ip` and `port` (0: any). Raises ApiError with what to do."""
    if not 0 <= port <= 65535:
        raise ApiError("invalid_request", f"invalid --port {port}: a port is a number from 0 to 65535")
    try:
        return bind_sockets(port, ip, backlog=BACKLOG)
    except (OSError, UnicodeError, ValueError) as error:
        raise ApiError("service_unavailable", _reason(ip, port, error)) from error


def _reason(ip: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} of {ip or 'all addresses'} is in use; stop what listens there or change --port"
    if number == errno.EACCES:
        return f"this user may not listen on port {port}; choose a --port from 1024 on"
    if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror | UnicodeError | ValueError):
        return f"invalid --ip {ip!r}: it is not an address of this machine ({error})"
    return f"cannot listen on {ip}:{port}: {error}"


def listen_unix(path: str) -> socket.socket:
    """A socket that listens on `path`, for this user only; a file that a dead server left is replaced.

    Raises ApiError with what to do when a server lives there, or the path cannot be used.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_way(path)
        mask = os.umask(0o177)  # never open to others, not even for a moment
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        listening.setblocking(False)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ApiError("service_unavailable", f"cannot listen on --socket {path}: {error}") from error
    except BaseException:
        listening.close()
        raise
    return listening


def _make_way(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ApiError(
            "invalid_request", f"--socket {path}: there is a file of this name; choose another path"
        )
    if _is_served(path):
        raise ApiError(
            "service_unavailable",
            f"--socket {path}: another server listens there; stop it or choose another path",
        )
    os.unlink(path)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # it is there and busy, or another user's: not ours to remove
    return True
