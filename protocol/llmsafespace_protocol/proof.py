"""Mutual proof: each side proves that it holds the sandbox's token, for this connection only.

1. The gateway sends `Hello` with a fresh nonce.
2. The agent sends `Challenge`: its own nonce and its proof.
3. The gateway checks that proof and sends `Answer`: its own proof and what the stream is for. Where that is
   large (long code), a frame of its own follows, so that nobody can send much before their proof.

A proof is an HMAC over both nonces, the sender's role and the fingerprint of the agent's certificate. It
therefore cannot be replayed on another connection or in the other direction. A unix socket has no
certificate; the fingerprint is then empty.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import ssl
from typing import Any, TypeVar

import msgspec

from llmsafespace_protocol.frames import MAX_FRAME, FrameKind, FrameStream

PROTOCOL = 1
PROOF_TIMEOUT = 10.0  # seconds that each side waits for each frame of the other
_LARGE_TIMEOUT = 60.0  # seconds for a frame of up to MAX_FRAME bytes
_MAX_HELLO = 4096  # bytes
_MAX_ANSWER = 256 * 1024  # bytes
T = TypeVar("T")


class ProofError(Exception):
    """The peer could not prove that it holds the token."""


class NoAnswer(ProofError):
    """The peer closed the connection or did not answer in time. It may still hold the token."""


class Hello(msgspec.Struct, frozen=True):
    """First frame, gateway to agent: the protocol version and the gateway's nonce."""

    version: int
    nonce: str


class Challenge(msgspec.Struct, frozen=True):
    """Second frame, agent to gateway: the agent's nonce and its proof."""

    nonce: str
    proof: str


class Answer(msgspec.Struct, frozen=True):
    """Third frame, gateway to agent: its proof; `open` says what the stream is for (see requests.py).

    Without `open` the next frame says it.
    """

    proof: str
    open: dict[str, Any] | None = None


def _proof(token: bytes, role: str, hello_nonce: str, challenge_nonce: str, fingerprint: str) -> str:
    text = "\n".join(("llmsafespace", role, hello_nonce, challenge_nonce, fingerprint))
    return hmac.new(token, text.encode(), hashlib.sha256).hexdigest()


def fingerprint(certificate_der: bytes | None) -> str:
    """Return the SHA-256 of a DER certificate in hex, or '' if there is no certificate."""
    return hashlib.sha256(certificate_der).hexdigest() if certificate_der else ""


def peer_fingerprint(stream: FrameStream) -> str:
    """Return the fingerprint of the peer's certificate, or '' without TLS."""
    tls: ssl.SSLObject | None = stream.transport.get_extra_info("ssl_object")
    return fingerprint(tls.getpeercert(True)) if tls is not None else ""


async def _receive(
    stream: FrameStream, kind: type[T], most: int = _MAX_HELLO, patience: float = PROOF_TIMEOUT
) -> T:
    """The next frame, of at most `most` bytes. Raises ProofError, and NoAnswer after `patience` seconds."""
    usual, stream.max_frame = stream.max_frame, most
    try:
        async with asyncio.timeout(patience):
            frame, body = await stream.next_frame()
    except (TimeoutError, ConnectionError) as error:
        raise NoAnswer("the peer did not answer the proof") from error
    finally:
        stream.max_frame = usual
    if frame != FrameKind.JSON:
        raise ProofError("the peer sent something other than a proof")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProofError(f"the peer's proof cannot be read: {error}") from error


async def prove_as_gateway(stream: FrameStream, token: bytes, open_: dict[str, Any]) -> None:
    """Run the gateway's side of the proof and open the stream for `open_`.

    Raises ProofError if the agent does not hold `token`, and its subclass NoAnswer if the agent does not
    answer in time. Every exception, also a cancellation, closes the stream.
    """
    hello = Hello(PROTOCOL, secrets.token_hex(32))
    mark = peer_fingerprint(stream)
    try:
        stream.send(FrameKind.JSON, msgspec.json.encode(hello))
        challenge = await _receive(stream, Challenge)
        wanted = _proof(token, "agent", hello.nonce, challenge.nonce, mark)
        if not hmac.compare_digest(wanted.encode(), challenge.proof.encode()):
            raise ProofError("the agent does not hold this sandbox's token")
    except BaseException:
        stream.abort()
        raise
    proof = _proof(token, "gateway", hello.nonce, challenge.nonce, mark)
    answer = msgspec.json.encode(Answer(proof, open_))
    if len(answer) <= _MAX_ANSWER:
        stream.send(FrameKind.JSON, answer)
        return
    stream.send(FrameKind.JSON, msgspec.json.encode(Answer(proof)))
    stream.send(FrameKind.JSON, msgspec.json.encode(open_))


async def prove_as_agent(stream: FrameStream, token: bytes, own_fingerprint: str) -> dict[str, Any]:
    """Run the agent's side of the proof; return what the gateway opens the stream for.

    Raises ProofError and NoAnswer, and closes the stream, as `prove_as_gateway` does.
    """
    try:
        hello = await _receive(stream, Hello)
        if hello.version != PROTOCOL:
            raise ProofError(f"the agent supports protocol {PROTOCOL} only, the gateway sent {hello.version}")
        nonce = secrets.token_hex(32)
        proof = _proof(token, "agent", hello.nonce, nonce, own_fingerprint)
        stream.send(FrameKind.JSON, msgspec.json.encode(Challenge(nonce, proof)))
        answer = await _receive(stream, Answer, _MAX_ANSWER)
        wanted = _proof(token, "gateway", hello.nonce, nonce, own_fingerprint)
        if not hmac.compare_digest(wanted.encode(), answer.proof.encode()):
            raise ProofError("the gateway does not hold this sandbox's token")
        if answer.open is not None:
            return answer.open
        return await _receive(stream, dict[str, Any], MAX_FRAME, _LARGE_TIMEOUT)
    except BaseException:
        stream.abort()
        raise
