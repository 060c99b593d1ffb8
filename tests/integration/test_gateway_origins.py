"""Pages of other origins read answers only where the operator named them; and what is at `/`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from llmsafespace_gateway.serving.origins import AllowedOrigins
from tests.conftest import Gateway, make_gateway

APP = "https://app.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


@pytest.fixture(scope="module")
def open_to_app(data_root: Path) -> Iterator[Gateway]:
    folder = data_root / f"origins-{os.urandom(4).hex()}"
    folder.mkdir()
    options = ("--allow-origin", APP, "--allow-origin-pat", r"https://pr-\d+\.example")
    made = make_gateway(folder, *options, warm_pools=[])
    yield made
    made.end_all()


def headers(gateway: Gateway, origin: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.admin_key}", "Origin": origin}


@pytest.mark.parametrize("origin", [APP, "https://pr-12.example"])
@pytest.mark.parametrize("path", ["/api/v1/sandboxes", "/api/kernels", "/api/kernelspecs"])
def test_a_named_origin_may_ask_and_read(open_to_app: Gateway, origin: str, path: str) -> None:
    asked = httpx.options(open_to_app.url + path, headers={"Origin": origin, **PREFLIGHT})
    assert asked.status_code == 204
    assert asked.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
    for given, status in ((headers(open_to_app, origin), 200), ({"Origin": origin}, 401)):
        answer = httpx.get(open_to_app.url + path, headers=given)
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == origin  # errors can be read too
        assert "Origin" in answer.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "https://pr-12.example.evil", "null"]
)
def test_any_other_origin_reads_nothing(open_to_app: Gateway, origin: str) -> None:
    url = f"{open_to_app.url}/api/v1/sandboxes"
    asked = httpx.options(url, headers={"Origin": origin, **PREFLIGHT})
    assert asked.status_code != 204
    for answer in (asked, httpx.get(url, headers=headers(open_to_app, origin))):
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_streams_and_websockets_of_a_named_origin(open_to_app: Gateway) -> None:
    known = headers(open_to_app, APP)
    async with httpx.AsyncClient(base_url=open_to_app.url, headers=known, timeout=120) as api:
        made = (await api.post("/api/v1/sandboxes", json={"runtime": "bash"})).json()
        path = f"/api/v1/sandboxes/{made['id']}"
        sse = {"Accept": "text/event-stream"}
        async with api.stream("POST", f"{path}/execute", json={"content": "echo 1"}, headers=sse) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            await answer.aread()
        where = f"ws://127.0.0.1:{open_to_app.port}{path}/stream?token={open_to_app.admin_key}"
        async with connect(where, origin=APP, proxy=None) as stream:  # type: ignore[arg-type]
            await stream.send('{"type": "ping"}')
            assert "pong" in await asyncio.wait_for(stream.recv(), 60)
        await api.delete(path)


def test_it_is_off_by_default(gateway: Gateway) -> None:
    url = f"{gateway.url}/api/v1/sandboxes"
    asked = httpx.options(url, headers={"Origin": APP, **PREFLIGHT})
    assert asked.status_code in (401, 404, 405)
    for answer in (asked, httpx.get(url, headers=headers(gateway, APP))):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("origin", "pattern", "asked", "allowed"),
    [
        ("*", "", "https://any.example", True),
        ("https://app.example/", "", "https://app.example", True),
        ("https://app.example", "", "http://app.example", False),
        ("", r"https://.*\.example", "https://a.example", True),
        ("", r"https://.*\.example", "https://a.example.evil", False),
        ("", r"https://.*\.example", "x https://a.example", False),
        ("", "", "https://a.example", False),
        ("*", "", None, False),
    ],
)
def test_origins(origin: str, pattern: str, asked: str | None, allowed: bool) -> None:
    assert AllowedOrigins(origin, pattern).allows(asked) is allowed


@pytest.mark.parametrize(("origin", "pattern"), [("app.example", ""), ("https://a/b", ""), ("", "(")])
def test_what_is_no_origin(origin: str, pattern: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        AllowedOrigins(origin, pattern)


# -- the page at / -------------------------------------------------------------------------------------------


def test_a_browser_gets_a_page_whose_links_work(gateway: Gateway) -> None:
    answer = httpx.get(f"{gateway.url}/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "script" not in answer.headers["Content-Security-Policy"]
    assert gateway.url in answer.text
    for link in ("api/v1/docs", "api/v1/openapi.json"):
        assert f'href="{link}"' in answer.text
        assert httpx.get(f"{gateway.url}/{link}").status_code == 200
    odd = httpx.get(f"{gateway.url}/", headers={"Accept": "text/html", "Host": 'a"><script>'})
    assert "<script>" not in odd.text


def test_others_get_json(gateway: Gateway) -> None:
    answer = httpx.get(f"{gateway.url}/", headers={"Accept": "*/*"})
    assert answer.status_code == 200
    assert answer.json()["name"] == "LLMSafeSpace"
    assert httpx.get(gateway.url + answer.json()["docs"]).status_code == 200
