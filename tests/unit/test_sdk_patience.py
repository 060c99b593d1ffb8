"""How long calls go on without a gateway: against a server that misbehaves, with a clock moved by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llmsafespace import connections, patience, transport
from llmsafespace.errors import GatewayUnavailable, SandboxError, SandboxTimeout
from llmsafespace.event_stream import follow
from llmsafespace.files import AsyncFiles
from llmsafespace.outputs import AsyncOutput
from llmsafespace.patience import Patience
from llmsafespace.settings import Endpoint
from llmsafespace.transport import Transport

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
OWN = b'{"error": {"code": "service_unavailable", "message": "the agent is away"}}'
Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


class Clock:
    """Time passes only while somebody sleeps in Patience, or by `jump`."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def jump(self, seconds: float) -> None:
        self.time += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await REAL_SLEEP(0)


REAL_SLEEP = asyncio.sleep


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(patience, "now", made.now)
    monkeypatch.setattr(patience, "asyncio", type("Sleeps", (), {"sleep": made.sleep}))
    return made


class Server:
    """Serves one scripted act for each connection, the last one again and again."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.requests: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")  # never comes where it is asked whether it speaks TLS
            act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
            length = next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if b"ength:" in x), 0)
            self.requests.append(head + await reader.readexactly(length))
            await act(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Transport]:
    made = Transport(Endpoint(f"http://127.0.0.1:{server.port}", "key"))
    yield made
    await made.close()
    transport._reached.clear()


async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def after(clock: Clock, seconds: float, act: Act) -> Act:
    """Hold the request for so long, then act."""

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock.jump(seconds)
        await act(reader, writer)

    return held


def says(answer: bytes) -> Act:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return say


def refuses(body: bytes, *headers: bytes, status: bytes = b"503 Service Unavailable") -> Act:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    return says(b"\r\n".join(lines))


async def goes_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def wear_out(waits: Patience, before: Callable[[], None] = lambda: None, held: float = 0.0) -> None:
    for _ in range(1000):
        before()
        await waits.wait(ConnectionRefusedError("refused"), held=held)


# -- time counts from the break ------------------------------------------------------------------------


@pytest.mark.parametrize("age", [1.0, 66.0, 100_000.0])
async def test_the_age_of_a_call_does_not_count(
    server: Server, client: Transport, clock: Clock, age: float
) -> None:
    """A repeatable request that was held for long before its connection broke, on a client without a past."""
    server.acts = [after(clock, age, breaks), after(clock, age, breaks), says(OK)]
    assert await client.request("POST", "/x", body={}, repeatable=True, timeout=600.0) == {}
    assert len(server.requests) == 3
    assert len(set(server.requests)) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_what_is_repeatable_by_nature(server: Server, client: Transport, method: str) -> None:
    empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    server.acts = [breaks, says(empty)]
    assert await client.request(method, "/x") is None


async def test_what_is_not_repeatable_is_sent_once(server: Server, client: Transport) -> None:
    server.acts = [breaks]
    with pytest.raises(GatewayUnavailable, match="unknown whether it was carried out"):
        await client.request("POST", "/x", body={})
    assert len(server.requests) == 1


async def test_each_break_counts_from_itself(clock: Clock, client: Transport) -> None:
    """A client whose stream breaks once an hour has the whole patience each time."""
    client.note_contact()
    waits = Patience(client)
    for _ in range(100):
        clock.jump(3600)
        await waits.wait(ConnectionResetError())
        clock.jump(patience.RETRY_FOR - 1)
        await waits.wait(ConnectionResetError())
        waits.heard()


async def test_the_end_of_patience(clock: Clock, client: Transport) -> None:
    client.note_contact()
    waits = Patience(client)
    began = clock.time
    with pytest.raises(GatewayUnavailable, match="tried again for 60 s"):
        await wear_out(waits)
    assert patience.RETRY_FOR < clock.time - began < patience.RETRY_FOR + 2
    assert max(clock.slept) <= 1.0


async def test_first_contact_is_short(clock: Clock, client: Transport) -> None:
    """Where nothing ever answered the URL may be wrong."""
    waits = Patience(client)
    began = clock.time
    with pytest.raises(GatewayUnavailable, match="is the URL right"):
        await wear_out(waits)
    assert clock.time - began < patience.FIRST_CONTACT + 2


async def test_connections_that_bring_nothing_end_too(clock: Clock, client: Transport) -> None:
    """A peer that accepts, lasts a while and breaks, for ever."""
    client.note_contact()
    waits = Patience(client)
    with pytest.raises(GatewayUnavailable):
        await wear_out(waits, lambda: clock.jump(20), held=20)
    assert clock.time < 1000 + 20 * 20


async def away(clock: Clock, waits: Patience, seconds: float) -> None:
    """No attempt succeeds for so long."""
    until = clock.time + seconds
    while clock.time < until:
        await waits.wait(ConnectionRefusedError())


@pytest.mark.parametrize("age", [60.0, 3600.0, 86400.0])
async def test_an_idle_connection_may_break_any_number_of_times(
    clock: Clock, client: Transport, age: float
) -> None:
    """A notebook that is left alone through restarts of its gateway: each break has the whole patience."""
    client.note_contact()
    waits = Patience(client)
    for _ in range(50):
        clock.jump(age)
        await waits.wait(ConnectionResetError(), held=age)
        await away(clock, waits, patience.RETRY_FOR - 2)


@pytest.mark.parametrize("age", [6.0, 30.0, 59.0])
async def test_each_break_of_a_young_connection_is_tried_again(
    clock: Clock, client: Transport, age: float
) -> None:
    """However many came before it: a limited number of connections, and no break that is fatal at once."""
    client.note_contact()
    waits = Patience(client)
    broken: list[float] = []

    async def break_again_and_again() -> None:
        while len(broken) < 100:
            clock.jump(age)
            await waits.wait(ConnectionResetError(), held=age)
            broken.append(clock.time)
            if len(broken) <= 12:
                await away(clock, waits, 5)

    with pytest.raises(GatewayUnavailable):
        await break_again_and_again()
    assert 12 < len(broken) < 30


# -- a gateway that says that it cannot ----------------------------------------------------------------


async def test_a_gateway_that_cannot_at_first(server: Server, client: Transport) -> None:
    server.acts = [refuses(OWN), refuses(b"<html>", status=b"502 Bad Gateway"), says(OK)]
    assert await client.request("GET", "/x") == {}


async def test_its_own_refusal_is_the_answer_in_the_end(
    server: Server, client: Transport, clock: Clock
) -> None:
    server.acts = [refuses(OWN)]
    began = clock.time
    with pytest.raises(GatewayUnavailable, match="the agent is away"):
        await client.request("GET", "/x")
    assert clock.time - began < patience.BUSY_FOR + 2


async def test_proxies_without_a_gateway_are_waited_for(
    server: Server, client: Transport, clock: Clock
) -> None:
    server.acts = [*[refuses(b"no endpoints")] * 40, says(OK)]
    assert await client.request("GET", "/x") == {}
    assert clock.time - 1000 > patience.BUSY_FOR


async def test_retry_after(server: Server, client: Transport, clock: Clock) -> None:
    """Kept where it is short; where it is longer than patience the answer is given at once."""
    server.acts = [refuses(OWN, b"Retry-After: 3"), says(OK)]
    await client.request("GET", "/x")
    assert clock.slept == [3.0]
    server.acts = [refuses(OWN, b"Retry-After: 30")]
    with pytest.raises(GatewayUnavailable) as raised:
        await client.request("GET", "/x")
    assert raised.value.retry_after == 30.0
    assert clock.slept == [3.0]


# -- peers that go silent ------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_SOON", 0.05)
    monkeypatch.setattr(transport, "ANSWER_LATER", 0.05)
    monkeypatch.setattr(connections, "SILENCE", 0.2)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_silent_connection_is_replaced(
    server: Server, client: Transport, short: None, method: str
) -> None:
    server.acts = [goes_silent, goes_silent, says(OK)]
    assert await client.request(method, "/x", repeatable=True, timeout=5.0) == {}


@pytest.mark.parametrize("repeatable", [True, False])
async def test_a_peer_that_stays_silent(
    server: Server, client: Transport, short: None, repeatable: bool
) -> None:
    server.acts = [goes_silent]
    with pytest.raises(SandboxTimeout, match=r"no answer within 0\.3 s"):
        await client.request("POST", "/x", repeatable=repeatable, timeout=0.3)
    assert (len(server.requests) > 1) is repeatable


async def test_a_silent_answer_to_an_upload(
    server: Server, client: Transport, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmsafespace.files._WRITTEN_WITHIN", 0.2)
    answer = b'{"path": "/workspace/a", "type": "file", "size": 1}'
    server.acts = [
        goes_silent,
        says(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer),
    ]
    with pytest.raises((KeyError, SandboxError)):  # the answer of this server is not a whole one
        await AsyncFiles(client, "sb").upload("a", content=b"x")
    assert len(server.requests) == 2


# -- streams of events ---------------------------------------------------------------------------------


def line(seq: int, kind: str = "stdout", **fields: Any) -> bytes:
    document = {"type": kind, "seq": seq, **fields}
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def lasts(*pieces: bytes, pause: float = 0.0) -> Act:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for piece in pieces:
            await REAL_SLEEP(pause)
            writer.write(piece)
            await writer.drain()

    return stream


END = line(9, "end", end="ok", exitCode=0)


async def told(client: Transport) -> tuple[str, str]:
    output = AsyncOutput("id", follow(client, "sb", "id"))
    execution = await asyncio.wait_for(output.finish(), 20)
    return execution.stdout, execution.end


async def test_a_stream_that_breaks_goes_on_behind_what_came(server: Server, client: Transport) -> None:
    first, second = line(1, text="a"), line(2, text="b")
    server.acts = [lasts(first), breaks, refuses(b"no"), lasts(second, second[:7]), lasts(END)]
    assert await told(client) == ("ab", "ok")
    asked = [request.split(b" ")[1].rsplit(b"=")[-1] for request in server.requests]
    assert asked == [b"0", b"1", b"1", b"1", b"2"]


async def test_heartbeats_keep_a_quiet_stream(server: Server, client: Transport, short: None) -> None:
    """It says nothing for many times the limit, but for its heartbeat."""
    server.acts = [lasts(*[b"\n"] * 20, line(1, text="a"), END, pause=0.05)]
    assert await told(client) == ("a", "ok")
    assert len(server.requests) == 1


async def test_a_stream_without_heartbeats_is_asked_for_again(
    server: Server, client: Transport, short: None
) -> None:
    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await lasts(line(1, text="a"))(reader, writer)
        await reader.read()

    server.acts = [hangs, lasts(line(2, text="b"), END)]
    assert await told(client) == ("ab", "ok")


async def test_only_newlines_end_a_line(server: Server, client: Transport) -> None:
    """Programs may print what Python's splitlines takes for the end of a line."""
    text = "a\u2028b\x85c\x0bd\x1ce"
    whole = line(1, text=text).replace(b"\\u000b", b"\\u000b")
    middle = whole.index("\u2028".encode()) + 1  # broken within a character
    server.acts = [lasts(whole[:middle], whole[middle:], END)]
    assert await told(client) == (text, "ok")


async def test_a_stream_that_never_brings_anything_ends(
    server: Server, client: Transport, clock: Clock
) -> None:
    server.acts = [lasts()]
    with pytest.raises(GatewayUnavailable):
        await told(client)
