"""The text of API keys: `lsp_<id>_<secret>`, and the hash that is kept of them.

The secret is 32 random bytes, so nobody can try the possible ones: a plain SHA-256 protects it as well as a
slow password hash would, and costs a request 2 µs instead of 100 ms. The id goes into the hash, so that a
hash copied to another row is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

_KEY = re.compile(r"lsp_([0-9a-f]{16})_([0-9a-f]{64})", re.ASCII)
ANY_KEY = re.compile(r"lsp_[0-9a-f]{16}_[0-9a-f]{64}", re.ASCII)
NO_HASH = "0" * 64  # stands for the hash of an unknown id; no key has it


def new_key() -> tuple[str, str, str]:
    """A new key: its id, its text (to be shown once) and its hash (to be stored)."""
    key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    return key_id, f"lsp_{key_id}_{secret}", key_hash(key_id, secret)


def parse_key(text: str) -> tuple[str, str] | None:
    """The id and the secret of a key's text; None when it is not a key."""
    found = _KEY.fullmatch(text)
    return None if found is None else (found[1], found[2])


def key_hash(key_id: str, secret: str) -> str:
    """What the store keeps of a key."""
    return hashlib.sha256(f"{key_id}:{secret}".encode("ascii")).hexdigest()


def matches(stored: str | None, presented: str) -> bool:
    """Compare hashes in constant time, and in the same time when there is no stored one."""
    same = hmac.compare_digest((stored or NO_HASH).encode(), presented.encode())
    return same and stored is not None


def bearer(authorization: str | None) -> str | None:
    """The credentials of an `Authorization` header of scheme Bearer or token (RFC 9110, 11.4); else None."""
    if not authorization:
        return None
    scheme, _, value = authorization.strip().partition(" ")
    return value.strip() if scheme.lower() in ("bearer", "token") and value.strip() else None
