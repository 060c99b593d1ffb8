"""The benchmark's stub agents are agents to whoever dials them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.kubernetes.stubs import StubAgents
from llmsafespace_agent.server import certificate
from llmsafespace_kube.claims.agents import dial
from llmsafespace_kube.claims.binding import BindRefused, bind
from llmsafespace_kube.claims.tokens import agent_token
from llmsafespace_protocol.proof import ProofError
from llmsafespace_protocol.requests import BindRequest, ExecutionInfo, Opened, OpenExecution, OpenRpc

KEY = b"k" * 32
OWNERS = {"127.0.0.2": "uid-of-a", "127.0.0.3": "uid-of-b"}
BIND = BindRequest(claim_id="claim", sandbox_id="sb-1", context_id="context")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    agents = StubAgents(KEY, OWNERS.get)
    yield await agents.start(certificate.begin(), port=0)
    await agents.stop()


def token(address: str) -> str:
    return agent_token(KEY, OWNERS[address])


async def test_each_address_is_a_pod_that_is_bound_once(port: int) -> None:
    for address in OWNERS:
        bound = await bind(address, port, token(address), BIND)
        assert (bound.state, bound.sandbox_id) == ("bound", "sb-1")
        assert [context.id for context in bound.contexts] == ["context"]
    again = await bind("127.0.0.2", port, token("127.0.0.2"), BIND)
    assert again.sandbox_id == "sb-1"
    other = msgspec.structs.replace(BIND, claim_id="another")
    with pytest.raises(BindRefused, match="another claim"):
        await bind("127.0.0.2", port, token("127.0.0.2"), other)


async def test_the_token_of_another_pod_is_refused(port: int) -> None:
    with pytest.raises(ProofError):
        await dial("127.0.0.2", port, token("127.0.0.3"), OpenRpc())


async def test_an_agent_that_goes_away_before_its_proof_was_not_reached(tmp_path: Path) -> None:
    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    tls, _ = certificate.finish(certificate.begin(), str(tmp_path))
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="did not answer"):
            await dial("127.0.0.1", port, token("127.0.0.2"), OpenRpc())


async def test_code_is_answered(port: int) -> None:
    await bind("127.0.0.2", port, token("127.0.0.2"), BIND)
    wanted = OpenExecution(execution="one", code="6 * 7")
    stream = await dial("127.0.0.2", port, token("127.0.0.2"), wanted)
    opened = msgspec.json.decode((await stream.next_frame())[1], type=Opened)
    assert opened.error is None
    ended = msgspec.json.decode((await stream.next_frame())[1], type=ExecutionInfo)
    assert (ended.id, ended.context, ended.end) == ("one", "context", "ok")
    await stream.wait_closed()


async def test_an_unbound_agent_runs_nothing(port: int) -> None:
    stream = await dial("127.0.0.3", port, token("127.0.0.3"), OpenExecution(execution="one", code="1"))
    opened = msgspec.json.decode((await stream.next_frame())[1], type=Opened)
    assert opened.error is not None
    assert opened.error.code == "conflict"
    await stream.wait_closed()
