"""Binds a sandbox that no gateway created: connects to its agent and calls `bind`."""

from __future__ import annotations

import asyncio

import msgspec

from llmsafespace_kube.claims import agents
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import Answer, BindRequest, Error, Opened, OpenRpc, Request, Status

BIND_TIMEOUT = 60.0  # seconds; a kernel of another language starts during bind
_LONGEST = 1000  # characters of the agent's message that are passed on


class BindRefused(ValueError):
    """The agent refused the bind; the message says why."""


async def bind(address: str, port: int, token: str, request: BindRequest) -> Status:
    """Bind the agent's sandbox. A repeated request gets the same answer.

    Raises BindRefused, ProofError, and OSError if the agent cannot be reached or does not answer.
    """
    stream = await agents.dial(address, port, token, OpenRpc())
    try:
        async with asyncio.timeout(BIND_TIMEOUT):
            return await _ask(stream, request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BindRefused("the agent's answer cannot be read") from error
    finally:
        stream.close()


async def _ask(stream: FrameStream, request: BindRequest) -> Status:
    _, body = await stream.next_frame()
    _raise_refusal(msgspec.json.decode(body, type=Opened).error)
    call = Request(1, "bind", msgspec.Raw(msgspec.json.encode(request)))
    stream.send(FrameKind.JSON, msgspec.json.encode(call))
    _, body = await stream.next_frame()
    answer = msgspec.json.decode(body, type=Answer)
    _raise_refusal(answer.error)
    return msgspec.json.decode(answer.result, type=Status)


def _raise_refusal(error: Error | None) -> None:
    if error is not None:
        raise BindRefused(f"the agent refused: {error.message[:_LONGEST]}")
