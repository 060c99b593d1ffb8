"""Input that no client should send, and what has to become of it."""

from __future__ import annotations

from typing import Any

from tests.security.support import Client, in_shape

NO_JSON = [
    b"{",
    b"nonsense",
    b"\xff\xfe\x00",
    b'{"a": NaN}',
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b'{"a": "\xed\xa0\x80"}',
    b"{} {}",
    b"'{}'",
    b"\x00",
]
NO_OBJECT = [b"null", b"true", b"1", b"1e400", b'"text"', b"[]", b"[{}]", b"9" * 5000]
STRANGE = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "\0",
    "x" * 200_000,
    "\ud7ff\u202e",
    [],
    [None],
    {},
    {"a": None},
]

WRONG_IDS = [
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..",
    "%00",
    "x%00y",
    "%ff%fe",
    "%",
    "%zz",
    "x" * 3000,
    "'%20or%201=1--",
    "%22",
    "$(id)",
    "{sandbox_id}",
    "*",
    "null",
    "0",
    "-1",
    "%F0%9F%92%A9",
    "%0d%0aX-Injected:%20yes",
    "sb-%E2%80%AE",
]


def refused(client: Client, method: str, path: str, **more: Any) -> None:
    """The request gets a 4xx of the right shape."""
    answer = client.request(method, path, **more)
    said = f"{method} {path} {str(more)[:200]}: {answer.status_code} {answer.text[:300]}"
    assert 400 <= answer.status_code < 500, said
    in_shape(answer)


def no_fault(client: Client, method: str, path: str, **more: Any) -> int:
    """The request gets an answer that is no fault of the gateway's; its status."""
    answer = client.request(method, path, **more)
    said = f"{method} {path} {str(more)[:200]}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, said
    if answer.status_code >= 400:
        in_shape(answer)
    return answer.status_code
