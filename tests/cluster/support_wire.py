"""The way between gateway and agents as an attacker has it: strangers, impostors, relays, and a capture."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from llmsafespace_kube.resources.names import AGENT_PORT
from llmsafespace_protocol import proof
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import Open
from tests.cluster.support import LIMIT

FRAME = struct.Struct(">IB")
EVERY_PROTOCOL = 3  # ETH_P_ALL: what leaves is seen, too
Flow = tuple[str, str, int, str, int]  # interface and whether in or out, from, port, to, port


def unchecked() -> ssl.SSLContext:
    """TLS to an agent, whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Recorder(FrameStream):
    """A connection that remembers what it has sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def send(self, kind: int, *parts: bytes | memoryview) -> None:
        self.sent.append(b"".join(parts))
        super().send(kind, *parts)


async def connect(address: str) -> Recorder:
    """A connection to the agent of a pod that has proved nothing yet."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT):
        _, stream = await loop.create_connection(Recorder, address, AGENT_PORT, ssl=unchecked())
    return stream


async def insist(address: str, token: bytes, open_: Open) -> list[bytes]:
    """All frames that somebody gets who proves this token, and does not look at the agent's own proof."""
    stream = await connect(address)
    hello = proof.Hello(proof.PROTOCOL, secrets.token_hex(32))
    stream.send(FrameKind.JSON, msgspec.json.encode(hello))
    _, body = await stream.next_frame()
    challenge = msgspec.json.decode(body, type=proof.Challenge)
    mark = proof.peer_fingerprint(stream)
    proved = proof._proof(token, "gateway", hello.nonce, challenge.nonce, mark)
    stream.send(FrameKind.JSON, msgspec.json.encode(proof.Answer(proved, msgspec.to_builtins(open_))))
    return await all_frames(stream)


async def send_again(address: str, recorded: list[bytes]) -> list[bytes]:
    """All frames that the agent answers with to the frames of another connection."""
    stream = await connect(address)
    for body in recorded:
        stream.send(FrameKind.JSON, body)
    return await all_frames(stream)


async def all_frames(stream: FrameStream) -> list[bytes]:
    """What comes until the other side ends the connection, as it has to."""
    got: list[bytes] = []
    stream.receive(lambda kind, body: got.append(body))
    try:
        async with asyncio.timeout(LIMIT):
            await stream.wait_closed()
    finally:
        stream.abort()
    return got


@asynccontextmanager
async def tapped(address: str) -> AsyncIterator[tuple[int, bytearray]]:
    """A loopback port that leads to an agent, and what went through it in that direction, as on the wire."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _relay(reader, writer, heard, await asyncio.open_connection(address, AGENT_PORT))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()


class Impostor:
    """Listens where a gateway expects an agent, with a certificate of its own: `heard` is all it is told.

    It passes everything on to the true agent at the address `behind`. Without one it answers by itself,
    with the proof of `token`.
    """

    def __init__(
        self, certificate: tuple[ssl.SSLContext, bytes], *, behind: str = "", token: str = ""
    ) -> None:
        self.address = f"127.{secrets.randbelow(200) + 10}.{secrets.randbelow(250)}.1"
        self.heard: list[bytearray] = []
        self._context, self._der = certificate
        self._behind = behind
        self._token = token

    async def __aenter__(self) -> Impostor:
        self._server = await asyncio.start_server(self._serve, self.address, AGENT_PORT, ssl=self._context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self.heard.append(heard)
        if self._behind:
            true = await asyncio.open_connection(self._behind, AGENT_PORT, ssl=unchecked())
            await _relay(reader, writer, heard, true)
            return
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            heard += await reader.readexactly(FRAME.size)
            heard += await reader.readexactly(FRAME.unpack(heard)[0])
            (hello,) = frames(heard)
            writer.write(self._challenge(msgspec.json.decode(hello, type=proof.Hello)))
            heard += await reader.read()

    def _challenge(self, hello: proof.Hello) -> bytes:
        nonce = secrets.token_hex(32)
        mark = proof.fingerprint(self._der)
        proved = proof._proof(bytes.fromhex(self._token), "agent", hello.nonce, nonce, mark)
        body = msgspec.json.encode(proof.Challenge(nonce, proved))
        return FRAME.pack(len(body), FrameKind.JSON) + body


def frames(data: bytes | bytearray) -> list[bytes]:
    """The bodies of frames that were written one after the other."""
    found = []
    while data:
        length, _ = FRAME.unpack_from(data)
        found.append(bytes(data[FRAME.size : FRAME.size + length]))
        data = data[FRAME.size + length :]
    return found


async def _relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    heard: bytearray,
    behind: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Both ways until one side ends; what comes from `reader` is kept in `heard`."""
    far_reader, far_writer = behind
    ways = [_pump(reader, far_writer, heard), _pump(far_reader, writer, None)]
    tasks = [asyncio.ensure_future(way) for way in ways]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT)
    for task in tasks:
        task.cancel()
    for each in (writer, far_writer):
        each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray | None) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            if heard is not None:
                heard += data
            writer.write(data)
            await writer.drain()


class Capture:
    """TCP over IPv4 as it passes this machine's interfaces, each direction of a connection by itself."""

    def __init__(self, tap: socket.socket) -> None:
        self.flows: defaultdict[Flow, bytearray] = defaultdict(bytearray)
        self._tap = tap
        self._stop = threading.Event()
        self._until = time.monotonic() + LIMIT
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def at(self, address: str, port: int) -> list[bytes]:
        """What went to and from this address and port."""
        here = (address, port)
        return [bytes(data) for flow, data in self.flows.items() if here in (flow[1:3], flow[3:5])]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        """Until it is stopped, and has read what had come by then."""
        while time.monotonic() < self._until:
            stopped = self._stop.is_set()
            try:
                packet, where = self._tap.recvfrom(1 << 17)
            except TimeoutError:
                if stopped:
                    return
            else:
                self._note(packet, f"{where[0]}/{where[2]}")

    def _note(self, packet: bytes, interface: str) -> None:
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return
        size, tcp = struct.unpack_from(">H", packet, 2)[0], (packet[0] & 15) * 4
        begin, end = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        ports = struct.unpack_from(">HH", packet, tcp)
        payload = packet[tcp + (packet[tcp + 12] >> 4) * 4 : size or None]
        self.flows[interface, begin, ports[0], end, ports[1]] += payload


@contextmanager
def captured() -> Iterator[Capture]:
    """A capture of what happens inside, for a minute at most. Raises PermissionError unless root runs it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PROTOCOL)) as tap:
        tap.settimeout(0.1)
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        capture = Capture(tap)
        try:
            yield capture
        finally:
            capture.stop()
