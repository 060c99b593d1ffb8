"""What the tests of the REST API share: clients, and sandboxes that are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx


class Client(httpx.Client):
    """A client of one key."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        super().__init__(base_url=f"{url}/api/v1", headers=headers, timeout=60)

    @contextmanager
    def sandbox(self, **wanted: Any) -> Iterator[str]:
        """A sandbox's id, deleted afterwards."""
        answer = self.post("/sandboxes", json={"runtime": "python", **wanted})
        assert answer.status_code == 201, answer.text
        try:
            yield answer.json()["id"]
        finally:
            self.delete(f"/sandboxes/{answer.json()['id']}")

    def execute(self, sandbox: str, content: str, **more: Any) -> dict[str, Any]:
        """The answer of an execution."""
        answer = self.post(f"/sandboxes/{sandbox}/execute", json={"content": content, **more})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def is_error(answer: httpx.Response, status: int | None = None, code: str | None = None) -> dict[str, Any]:
    """Check the shape of an error answer."""
    assert answer.headers["content-type"] == "application/json", (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert body["error"]["message"]
    if status is not None:
        assert answer.status_code == status, answer.text
    if code is not None:
        assert body["error"]["code"] == code, answer.text
    error: dict[str, Any] = body["error"]
    return error
