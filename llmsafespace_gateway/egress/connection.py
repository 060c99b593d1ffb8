"""One client connection of the egress proxy: read, decide, resolve, check, connect, relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec

from llmsafespace_gateway.egress.client_hello import MAX_HELLO, NotTls, handshake_of, server_name
from llmsafespace_gateway.egress.http_head import (
    MAX_HEAD,
    BadRequest,
    ProxyRequest,
    answer_head,
    error_answer,
    origin_head,
    parse_request,
)
from llmsafespace_gateway.egress.lookups import Lookups, TooManyLookups
from llmsafespace_gateway.egress.rules import Network, Rule, as_address, matching, normal_host, usable

Decided = Callable[[bool, str, int, str], None]
_CHUNK = 64 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one sandbox's traffic; times are seconds, `buffer` bytes a direction."""

    connections: int = 32
    lookups: int = 8  # names that are looked up at once
    head: float = 15.0
    resolve: float = 10.0
    connect: float = 10.0
    idle: float = 300.0
    buffer: int = 64 * 1024


class Policy(msgspec.Struct, frozen=True):
    """What `sandbox` may reach."""

    sandbox: str
    rules: tuple[Rule, ...]


class _Refused(Exception):
    """The connection is not allowed, or cannot be made (`denied` false); the message is for people."""

    def __init__(self, message: str, status: int = 403, *, denied: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.denied = denied


class Dialer:
    """Resolves a name, checks every address, and connects to one that was checked; for all sandboxes."""

    def __init__(self, limits: Limits, denied: Sequence[Network]) -> None:
        self._limits = limits
        self._denied = denied
        self._lookups = Lookups(limits.lookups)

    async def dial(
        self, sandbox: str, host: str, port: int, rule: Rule
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to `host` for `sandbox`. Raises _Refused."""
        addresses = usable(await self._resolve(sandbox, host), rule, self._denied)
        if not addresses:
            raise _Refused(f"{host} has no public address; private and internal addresses are never reached")
        for address in addresses:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._limits.connect):
                    return await asyncio.open_connection(address, port, limit=self._limits.buffer)
        raise _Refused(f"{host}:{port} did not accept a connection", 504, denied=False)

    async def _resolve(self, sandbox: str, host: str) -> list[str]:
        if as_address(host) is not None:
            return [host]
        found: list[str] = []
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.resolve):
                    found = await self._lookups.addresses(sandbox, host)
        except TooManyLookups as error:
            raise _Refused(str(error), 503, denied=False) from None
        if not found:
            raise _Refused(f"the name {host} could not be resolved", 502, denied=False)
        return found


class Connection:
    """Serves one connection: a CONNECT tunnel for TLS, or one plain HTTP request."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        policy: Policy,
        dialer: Dialer,
        limits: Limits,
        decided: Decided,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._policy = policy
        self._dialer = dialer
        self._limits = limits
        self._decided = decided

    async def serve(self) -> None:
        """Serve until either side ends it, nothing moves for long, or it is refused."""
        try:
            request = parse_request(await self._head(self._reader))
        except BadRequest as error:
            await self._answer(error.status, str(error))
            return
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return
        try:
            await self._forward(request)
        except _Refused as refused:
            if refused.denied:
                self._decided(False, request.host, request.port, str(refused))
            await self._answer(refused.status, f"Egress of this sandbox: {refused}")
        except BadRequest as error:
            await self._answer(error.status, str(error))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # one of the two sides went away or fell silent; the other sees its connection end

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._limits.head):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise BadRequest("the head is too long", 431) from None
        if len(head) > MAX_HEAD:
            raise BadRequest("the head is too long", 431)
        return head

    async def _answer(self, status: int, text: str) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write(error_answer(status, text))
            async with asyncio.timeout(self._limits.head):
                await self._writer.drain()

    def _rule(self, request: ProxyRequest) -> Rule:
        rules = [each for each in self._policy.rules if each.allows(request.method, request.body_length > 0)]
        rule = matching(request.host, request.port, rules)
        if rule is None and matching(request.host, request.port, self._policy.rules) is not None:
            raise _Refused(
                f"{request.method[:20]} is not allowed on the package index {request.host}:{request.port}, "
                "only GET and HEAD without a body"
            )
        if rule is None:
            allowed = ", ".join(f"{r.domain}:{'/'.join(map(str, r.ports))}" for r in self._policy.rules)
            raise _Refused(
                f"{request.host}:{request.port} is not allowed. Allowed: {allowed or 'nothing'}. Create the "
                'sandbox with networkAccess {"egress": [{"domain": '
                f'"{request.host}", "ports": [{request.port}]}}]}} to allow it.'
            )
        return rule

    async def _forward(self, request: ProxyRequest) -> None:
        rule = self._rule(request)
        reader, writer = await self._dialer.dial(self._policy.sandbox, request.host, request.port, rule)
        try:
            if request.tunnel:
                await self._tunnel(request, reader, writer)
            else:
                self._decided(True, request.host, request.port, request.method)
                await self._plain(request, reader, writer)
        finally:
            writer.close()

    async def _tunnel(
        self, request: ProxyRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await self._writer.drain()
        try:
            begin = await self._checked_hello(request.host)
        except NotTls as error:
            # The tunnel stands already: its end is the only answer that the client can be given.
            self._decided(False, request.host, request.port, str(error))
            return
        self._decided(True, request.host, request.port, "CONNECT")
        writer.write(begin)
        await self._both_ways(reader, writer)

    async def _checked_hello(self, host: str) -> bytes:
        """What the client sent up to the end of its ClientHello, which names `host`. Raises NotTls."""
        begin = b""
        async with asyncio.timeout(self._limits.head):
            while (hello := handshake_of(begin)) is None:
                more = await self._reader.read(MAX_HELLO)
                if not more:
                    raise NotTls("the connection ended before a TLS ClientHello")
                begin += more
        name = server_name(hello)
        if name is None and as_address(host) is None:
            raise NotTls("the TLS ClientHello names no server (SNI)")
        try:
            same = name is None or normal_host(name) == host
        except ValueError:
            same = False
        if not same:
            raise NotTls(f"the TLS ClientHello names another server: {name}")
        return begin

    async def _plain(
        self, request: ProxyRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(origin_head(request))
        body = asyncio.create_task(self._body(request.body_length, writer))
        try:
            while (head := answer_head(request, await self._head_of_answer(reader))) is None:
                pass
            self._writer.write(head)
            await self._copy(reader, self._writer)
        finally:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)

    async def _head_of_answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._limits.idle):
                return await reader.readuntil(b"\r\n\r\n")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, OSError, TimeoutError):
            raise BadRequest("the server gave no answer", 502) from None

    async def _body(self, length: int, writer: asyncio.StreamWriter) -> None:
        while length > 0:
            async with asyncio.timeout(self._limits.idle):
                data = await self._reader.read(min(length, _CHUNK))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()
            length -= len(data)

    async def _both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay until both directions are at their end, or one fails, or nothing moves in either for long."""
        ways: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(self._limits.idle) as limit:
                ways.append(asyncio.create_task(self._one_way(self._reader, writer, limit)))
                ways.append(asyncio.create_task(self._one_way(reader, self._writer, limit)))
                await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _one_way(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, limit: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
            limit.reschedule(loop.time() + self._limits.idle)
        target.write_eof()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Copy until `source` ends. Raises TimeoutError when nothing moves for long, OSError."""
        while True:
            async with asyncio.timeout(self._limits.idle):
                data = await source.read(_CHUNK)
                if not data:
                    return
                target.write(data)
                await target.drain()
