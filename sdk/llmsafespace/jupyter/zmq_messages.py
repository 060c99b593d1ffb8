"""Kernel messages on ZeroMQ: identities, signature, parts (Jupyter messaging, "The Wire Protocol")."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

DELIMITER = b"<IDS|MSG>"


class WrongSignature(ValueError):
    """The message was not signed with the connection's key, or is no message."""


class Signer:
    """Signs and checks with the key of a connection file; an empty key signs nothing.

    The signature covers header, parent header, metadata and content, not the buffers.
    """

    def __init__(self, connection: Mapping[str, Any]) -> None:
        key = connection.get("key") or b""
        self._key = key.encode() if isinstance(key, str) else bytes(key)
        scheme = str(connection.get("signature_scheme") or "hmac-sha256")
        self._digest = getattr(hashlib, scheme.removeprefix("hmac-"))

    def sign(self, parts: Sequence[bytes | memoryview]) -> bytes:
        """The signature of a message's first four parts."""
        if not self._key:
            return b""
        mac = hmac.new(self._key, digestmod=self._digest)
        for part in parts[:4]:
            mac.update(part)
        return mac.hexdigest().encode()

    def wrap(
        self, identities: Sequence[bytes], parts: Sequence[bytes | memoryview]
    ) -> list[bytes | memoryview]:
        """The frames of a message."""
        return [*identities, DELIMITER, self.sign(parts), *parts]

    def unwrap(self, frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The identities and the parts of a message. Raises WrongSignature."""
        try:
            place = frames.index(DELIMITER)
        except ValueError:
            raise WrongSignature("no delimiter") from None
        identities, signature, parts = (
            list(frames[:place]),
            frames[place + 1 : place + 2],
            frames[place + 2 :],
        )
        if len(parts) < 4 or not signature:
            raise WrongSignature("parts are missing")
        if not hmac.compare_digest(signature[0], self.sign(parts)):
            raise WrongSignature("the signature is not that of this connection")
        return identities, list(parts)


def address(connection: Mapping[str, Any], channel: str) -> str:
    """The ZeroMQ address of a channel in a connection file."""
    transport, ip = connection.get("transport", "tcp"), connection["ip"]
    port = connection[f"{channel}_port"]
    return f"tcp://{ip}:{port}" if transport == "tcp" else f"{transport}://{ip}-{port}"
