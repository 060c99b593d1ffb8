"""Names are looked up in threads of their own, of which no sandbox can occupy more than a few."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

_TOGETHER = 256  # threads; one that waits for an answer needs little more than its stack


class TooManyLookups(Exception):
    """Too much is being looked up already; the message is for people."""


class Lookups:
    """Looks names up, at most `each` of one sandbox at once, and `together` of all.

    A lookup counts until its thread ends, not until nobody waits for it any more: nothing can interrupt the
    resolver, and a name whose servers never answer keeps a thread for long.
    """

    def __init__(self, each: int, together: int = _TOGETHER) -> None:
        self._each = each
        self._together = together
        self._running: dict[tuple[str, str], asyncio.Future[list[str]]] = {}  # by sandbox and host

    async def addresses(self, sandbox: str, host: str) -> list[str]:
        """The addresses of `host`, none when it cannot be resolved. Raises TooManyLookups at once.

        Connections of a sandbox that ask for the same name at the same time share one lookup: installers
        open many to one host. Waiting has no limit here.
        """
        running = self._running.get((sandbox, host)) or self._begin(sandbox, host)
        return list(await asyncio.shield(running))

    def _begin(self, sandbox: str, host: str) -> asyncio.Future[list[str]]:
        if sum(who == sandbox for who, _ in self._running) >= self._each:
            raise TooManyLookups("too many names of this sandbox are being looked up; try again in a moment")
        if len(self._running) >= self._together:
            raise TooManyLookups("the proxy is looking up too many names; try again later")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()
        self._running[sandbox, host] = found

        def ended(addresses: list[str]) -> None:
            del self._running[sandbox, host]
            found.set_result(addresses)

        def run() -> None:
            addresses: list[str] = []
            try:
                addresses = _addresses(host)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits or counts
                    loop.call_soon_threadsafe(ended, addresses)

        try:
            # Those of an executor would hold up the end of the process until the last name is resolved.
            threading.Thread(target=run, name="lookup", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            ended([])
            raise TooManyLookups("the proxy cannot look up more names; try again later") from None
        return found


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]
