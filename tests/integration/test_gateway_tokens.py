"""Keys in URLs: refused with the reason, or taken where the operator says so, and never in the log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Gateway, make_gateway

PATHS = ("/api/v1/sandboxes", "/api/kernels")


@pytest.fixture(scope="module")
def taking(data_root: Path) -> Iterator[Gateway]:
    folder = data_root / f"tokens-{os.urandom(4).hex()}"
    folder.mkdir()
    made = make_gateway(folder, "--allow-token-in-url", "--debug", warm_pools=[])
    yield made
    made.end_all()


@pytest.mark.parametrize("path", PATHS)
def test_off_it_is_refused_with_the_reason(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{gateway.url}{path}?token={gateway.admin_key}")
        assert answer.status_code == 401
        message = answer.json()["error"]["message"]
        assert "logs" in message
        assert "--allow-token-in-url" in message
        assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert "token" not in httpx.get(gateway.url + path).json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
def test_on_it_is_a_key_like_any(taking: Gateway, path: str) -> None:
    url = f"{taking.url}{path}"
    assert httpx.get(f"{url}?token={taking.admin_key}").status_code == 200
    assert httpx.get(f"{url}?token=lsp_wrong").status_code == 401
    assert httpx.get(f"{url}?token=").status_code == 401
    assert httpx.get(url).status_code == 401
    both = httpx.get(f"{url}?token=wrong", headers={"Authorization": f"Bearer {taking.admin_key}"})
    assert both.status_code == 200


def test_no_log_has_it(taking: Gateway) -> None:
    """Not even with --debug, for what fails and for what is not there."""
    key = taking.key("ada")
    for path in (*PATHS, "/api/v1/nothing", "/nothing", "/api/v1/sandboxes/%ff"):
        httpx.get(f"{taking.url}{path}?token={key}")
    assert httpx.get(f"{taking.url}/healthz").status_code == 200
    assert not [line for line in taking.output if key in line]
