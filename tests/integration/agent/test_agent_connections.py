"""Who may connect: the mutual proof, over TLS too, and what happens to everybody else."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import ProofError, prove_as_gateway
from llmsafespace_protocol.requests import OpenRpc

from .conftest import TOKEN, Refused, Rpc, document, end_of

RPC = {"kind": "rpc"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def refused(stream: FrameStream) -> None:
    stream.receive(lambda kind, body: None)
    await asyncio.wait_for(stream.wait_closed(), 30)


async def test_wrong_token_is_refused_by_both_sides(launch: Any) -> None:
    agent = await launch(parked=0)
    with pytest.raises(ProofError):
        await prove_as_gateway(await agent.dial(), b"y" * 32, RPC)
    # A peer that skips the check of the agent and answers with a proof of another token.
    stream = await agent.dial()
    stream.send(FrameKind.JSON, b'{"version": 1, "nonce": "aa"}')
    await document(stream)
    stream.send(FrameKind.JSON, b'{"proof": "' + b"0" * 64 + b'", "open": {"kind": "rpc"}}')
    await refused(stream)


@pytest.mark.parametrize(
    "frames",
    [
        [(0, b"{}")],
        [(0, b"not json")],
        [(1, b"data")],
        [(0, b'{"version": 99, "nonce": "a"}')],
        [(0, b'{"version": 1, "nonce": "' + b"a" * 100_000 + b'"}')],
        [(0, b'{"version": 1, "nonce": "aa"}'), (0, b"[]")],
        [(0, b'{"version": 1, "nonce": "aa"}'), (0, b'{"proof": "\xc3\xa9", "open": {}}')],
        [(2, b"\x00" * 70_000_000)],
    ],
)
async def test_garbage_is_refused_and_the_agent_lives(launch: Any, frames: Any) -> None:
    agent = await launch(parked=0)
    stream = await agent.dial()
    stream.max_frame = 2**31
    for kind, body in frames:
        stream.send(kind, body)
    await refused(stream)
    assert (await (await agent.rpc())("status")).state == "starting"


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"kind": "nothing"},
        {"kind": "channels"},
        {"kind": "channels", "context": 5, "session": "x"},
        {"kind": "channels", "context": "a", "session": "x", "after": "no"},
        {"kind": "file_read", "path": None},
        {"kind": "execution", "execution": "../x", "code": "1"},
    ],
)
async def test_bad_opens_are_answered(launch: Any, wish: Any) -> None:
    agent = await launch(parked=0)
    await agent.bind(await agent.rpc())
    stream = await agent.dial()
    await prove_as_gateway(stream, bytes.fromhex(TOKEN), wish)
    assert (await document(stream))["error"]["code"] == "invalid_request"
    await refused(stream)


async def test_bad_requests_end_the_rpc_stream_only(launch: Any) -> None:
    agent = await launch(parked=0)
    for rubbish in (b"[]", b"{", b'{"id": "x", "method": "status"}', b"[" * 100_000):
        rpc = await agent.rpc()
        rpc.stream.send(FrameKind.JSON, rubbish)
        assert (await document(rpc.stream))["error"]["code"] == "invalid_request"
        await refused(rpc.stream)
    rpc = await agent.rpc()
    with pytest.raises(Refused):
        await rpc("files.stat", path=1)


async def test_silent_strangers_are_bounded(launch: Any) -> None:
    agent = await launch(parked=0)
    strangers = [await agent.dial() for _ in range(100)]
    for stream in strangers:
        stream.receive(lambda kind, body: None)
    leaving = [asyncio.ensure_future(stream.wait_closed()) for stream in strangers]
    for turned_away in asyncio.as_completed(leaving):
        await turned_away
        if sum(one.done() for one in leaving) >= 36:
            break
    for stream in strangers:
        stream.abort()
    while True:
        try:
            rpc = await agent.rpc()
            break
        except (ProofError, ConnectionError):  # the agent has not seen them leave yet
            await asyncio.sleep(0.01)
    assert (await rpc("status")).state == "starting"


async def test_tls_with_a_certificate_of_its_own(launch: Any) -> None:
    agent = await launch(listen={"host": "127.0.0.1", "port": free_port()})
    await agent.bind(await agent.rpc())
    session = await agent.session()
    assert end_of(await session.run("1 + 1")) == "ok"
    with pytest.raises(ProofError):
        await prove_as_gateway(await agent.dial(), b"y" * 32, RPC)
    assert [name for name in os.listdir(agent.folder / "run") if "tmp" in name] == []


async def test_a_relay_with_another_certificate_proves_nothing(launch: Any, tmp_path: Any) -> None:
    """A man in the middle passes the proof's frames on, over two TLS connections of his own."""
    agent = await launch(listen={"host": "127.0.0.1", "port": free_port()}, parked=0)
    other = await launch(listen={"host": "127.0.0.1", "port": free_port()}, parked=0, token="77" * 32)
    upstream = await agent.dial()
    (await other.dial()).abort()  # listens
    relay = await _relay(upstream, tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    port = relay.sockets[0].getsockname()[1]
    _, stream = await asyncio.get_running_loop().create_connection(FrameStream, "127.0.0.1", port, ssl=tls)
    with pytest.raises(ProofError):
        await prove_as_gateway(stream, bytes.fromhex(TOKEN), RPC)
    relay.close()


async def _relay(upstream: FrameStream, folder: Any) -> asyncio.Server:
    from llmsafespace_agent.server import certificate

    context, _ = certificate.finish(certificate.begin(), str(folder))

    class Downstream(FrameStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.receive(lambda kind, body: upstream.send(kind, body))
            upstream.receive(lambda kind, body: self.send(kind, body))

    return await asyncio.get_running_loop().create_server(Downstream, "127.0.0.1", 0, ssl=context)


async def test_an_inherited_listening_socket_serves(launch: Any, tmp_path: Any) -> None:
    """The keeper's way: the descriptor is inherited, and nothing in the sandbox inherits it further."""
    path = f"/tmp/lsa-{os.getpid()}.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    try:
        agent = await launch(listen={"fd": listening.fileno()}, pass_fds=(listening.fileno(),), parked=0)
        _, stream = await asyncio.get_running_loop().create_unix_connection(FrameStream, path)
        await prove_as_gateway(stream, bytes.fromhex(TOKEN), {"kind": OpenRpc.__struct_config__.tag})
        await document(stream)
        rpc = Rpc(stream)
        await agent.bind(rpc)
        started = await rpc("commands.start", id="c", command="ls -l /proc/self/fd | grep -c socket")
        assert started.pid
        stream.abort()
    finally:
        listening.close()
        os.unlink(path)


async def test_nobody_reads_the_agent(launch: Any) -> None:
    """Not dumpable: /proc shows its environment and descriptors to root only."""
    agent = await launch(parked=0)
    await agent.rpc()
    assert os.stat(f"/proc/{agent.process.pid}/environ").st_uid == 0


async def test_memory_is_small(agent: Any) -> None:
    session = await agent.session()
    for _ in range(5):
        await session.run("print(1)")
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
        if ":" in line
    )
    assert int(status["VmRSS"].split()[0]) <= 45 * 1024
