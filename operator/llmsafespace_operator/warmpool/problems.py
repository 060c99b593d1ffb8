"""Reads from a warm pod's agent what went wrong when it preloaded packages and ran scripts."""

from __future__ import annotations

import asyncio

import msgspec

from llmsafespace_kube.claims import agents
from llmsafespace_kube.resources.names import AGENT_PORT
from llmsafespace_protocol.frames import FrameKind
from llmsafespace_protocol.requests import Answer, Opened, OpenRpc, Request, Status

_LIMIT = 5.0  # seconds
_MAX_PROBLEMS = 8
_LONGEST = 200  # maximum characters of each problem


async def problems_of(address: str, token: str) -> list[str]:
    """Return the agent's problems. Raises ProofError, and OSError if it does not answer correctly."""
    async with asyncio.timeout(_LIMIT):
        stream = await agents.dial(address, AGENT_PORT, token, OpenRpc())
        try:
            _, opened = await stream.next_frame()
            refusal = msgspec.json.decode(opened, type=Opened).error
            stream.send(FrameKind.JSON, msgspec.json.encode(Request(1, "status", msgspec.Raw(b"{}"))))
            _, answered = await stream.next_frame()
            answer = msgspec.json.decode(answered, type=Answer)
            if refusal is not None or answer.error is not None:
                raise OSError("the agent refused the status request")
            problems = msgspec.json.decode(answer.result, type=Status).problems
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise OSError("the agent's answer cannot be read") from error
        finally:
            stream.close()
    return [problem[:_LONGEST] for problem in problems[:_MAX_PROBLEMS]]
