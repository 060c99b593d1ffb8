"""A URL that is nearly right: it works, or the error names the cause and what to write."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from llmsafespace import AsyncSandbox, GatewayUnavailable, InvalidRequest, Sandbox, SandboxError
from tests.certificates import self_signed
from tests.conftest import Gateway

CONNECT = 9.0  # seconds; without a word of its own a connection that gets no answer takes longer
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Its host and port."""
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as serving:
        yield f"127.0.0.1:{serving.sockets[0].getsockname()[1]}"


def says(*lines: str) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write("\r\n".join([*lines, "Connection: close", "Content-Length: 2", "", "no"]).encode())
        writer.close()

    return answer


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    certificate, key = self_signed(["localhost"])
    (tmp_path / "certificate").write_text(certificate)
    (tmp_path / "key").write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    return context


async def refusal(url: str) -> str:
    with pytest.raises(SandboxError) as raised:
        await asyncio.wait_for(AsyncSandbox.connect("sb-x", api_url=url, api_key="key"), CONNECT)
    assert isinstance(raised.value, GatewayUnavailable), raised.value
    return str(raised.value)


@pytest.mark.parametrize("path", ["/api/v1", "/", "/api/v1/docs", "//api/v1/"])
def test_urls_of_what_the_gateway_serves(gateway: Gateway, path: str) -> None:
    with Sandbox(api_url=gateway.url + path, api_key=gateway.admin_key) as sandbox:
        assert sandbox.run_code("6 * 7").text == "42"
        assert sandbox.run_command("echo 1").stdout == "1\n"


def test_this_machine_needs_no_scheme(gateway: Gateway) -> None:
    with Sandbox(api_url=f"127.0.0.1:{gateway.port}", api_key=gateway.admin_key) as sandbox:
        assert sandbox.run_code("6 * 7").text == "42"


async def test_https_to_a_port_of_plain_http(gateway: Gateway) -> None:
    said = await refusal(gateway.url.replace("http:", "https:"))
    assert said.endswith(f"speaks http, not https: use {gateway.url}")


async def test_http_to_a_port_of_tls(tls: ssl.SSLContext) -> None:
    async with server(says("HTTP/1.1 200 OK"), tls) as place:
        assert (await refusal(f"http://{place}")).endswith(f"use https://{place}")


async def test_a_certificate_that_is_not_trusted(tls: ssl.SSLContext) -> None:
    async with server(says("HTTP/1.1 200 OK"), tls) as place:
        said = await refusal(f"https://{place}")
    assert "certificate is not trusted here (self" in said
    assert "SSL_CERT_FILE" in said


async def test_a_server_that_refuses_what_is_no_http_at_once() -> None:
    """Others than the gateway do so."""
    async with server(says("HTTP/1.1 400 Bad Request")) as place:
        assert "it does not speak TLS: write http://" in await refusal(f"https://{place}")


async def test_a_redirection_is_named() -> None:
    async with server(says("HTTP/1.1 301 Moved", "Location: https://gw.example/x")) as place:
        with pytest.raises(InvalidRequest, match=r"gw\.example/x: use the URL"):
            await AsyncSandbox.connect("sb-x", api_url=f"http://{place}", api_key="key")


async def test_what_is_no_gateway_is_named() -> None:
    async with server(says("HTTP/1.1 404 Not Found", "Content-Type: text/html")) as place:
        with pytest.raises(SandboxError, match="status 404, not as a gateway does: is the URL right"):
            await AsyncSandbox.connect("sb-x", api_url=f"http://{place}/team", api_key="key")


async def test_a_slow_gateway_over_tls_is_waited_for(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first answer may take long; that is not taken for a wrong scheme."""
    from llmsafespace import connections

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.sleep(1)
        await says("HTTP/1.1 401 Unauthorized")(reader, writer)

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    connections.tls_context.cache_clear()
    try:
        async with server(answer, tls) as place:
            url = f"https://{place.replace('127.0.0.1', 'localhost')}"
            with pytest.raises(SandboxError, match="status 401"):
                await AsyncSandbox.connect("sb-x", api_url=url, api_key="key")
    finally:
        connections.tls_context.cache_clear()
