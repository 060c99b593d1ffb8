"""Errors, settings and the ways to write a request."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

import llmsafespace
from llmsafespace import errors, files, requests, settings
from llmsafespace.warm_pools import _scripts


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.URL_VARIABLE, raising=False)
    monkeypatch.delenv(settings.KEY_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", errors.AuthenticationError),
        (403, "forbidden", errors.PermissionDenied),
        (404, "not_found", errors.NotFound),
        (400, "invalid_request", errors.InvalidRequest),
        (429, "rate_limited", errors.RateLimited),
        (429, "quota_exceeded", errors.QuotaExceeded),
        (410, "gone", errors.SandboxEnded),
        (422, "runtime_unavailable", errors.RuntimeUnavailable),
        (503, "service_unavailable", errors.GatewayUnavailable),
        (500, "internal_error", errors.SandboxError),
    ],
)
def test_each_code_has_its_exception(status: int, code: str, kind: type[errors.SandboxError]) -> None:
    error = errors.error_for(
        status, {"error": {"code": code, "message": "m", "details": {"end": "oom"}}}, "1.5"
    )
    assert type(error) is kind
    assert (str(error), error.code) == ("m", code)
    if isinstance(error, errors.RateLimited):
        assert error.retry_after == 1.5
    if isinstance(error, errors.SandboxEnded):
        assert error.end == "oom"


def test_answers_of_others_are_understood() -> None:
    assert isinstance(errors.error_for(404, {"message": "no kernel", "reason": None}), errors.NotFound)
    assert "502" in str(errors.error_for(502, None))
    crowded = {"code": "service_unavailable", "message": "no", "details": {"reason": "Unschedulable"}}
    refused = errors.error_for(503, {"error": crowded}, "15")
    assert isinstance(refused, errors.NoRoom)
    assert refused.retry_after == 15
    busy = errors.error_for(503, {"error": {**crowded, "details": {"reason": "ColdStartLimit"}}})
    assert type(busy) is errors.GatewayUnavailable
    assert errors.error_for(429, None, "soon").retry_after is None


def test_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.explicit_endpoint() is None
    assert settings.explicit_endpoint("https://gw.example/", "k") == settings.Endpoint(
        "https://gw.example", "k"
    )
    assert settings.Endpoint("https://gw.example").websocket_url == "wss://gw.example"
    assert not settings.Endpoint("https://gw.example").is_local
    assert settings.Endpoint("http://127.0.0.1:1").is_local
    assert settings.explicit_endpoint("unix:///run/x.sock") == settings.Endpoint(
        "http://localhost", None, "/run/x.sock"
    )
    assert "secret" not in repr(settings.Endpoint("http://x", "secret"))
    with pytest.raises(errors.AuthenticationError, match=settings.KEY_VARIABLE):
        settings.explicit_endpoint("http://gw.example")
    monkeypatch.setenv(settings.KEY_VARIABLE, "k")
    assert settings.explicit_endpoint() == settings.Endpoint(settings.DEFAULT_URL, "k")


@pytest.mark.parametrize(
    ("pasted", "url"),
    [
        ("https://gw.example/", "https://gw.example"),
        ("https://gw.example/api/v1", "https://gw.example"),
        ("https://gw.example/api/v1/", "https://gw.example"),
        ("https://gw.example/api/v1/docs", "https://gw.example"),
        ("https://gw.example/api/v1/sandboxes/sb-1/", "https://gw.example"),
        ("https://gw.example//api//v1//", "https://gw.example"),
        ("https://gw.example/api", "https://gw.example"),
        ("https://gw.example/team/api/v1/", "https://gw.example/team"),
        ("https://gw.example/rapid", "https://gw.example/rapid"),
        ("https://gw.example/team/", "https://gw.example/team"),
        (" HTTPS://Gw.Example:8443/\n", "https://Gw.Example:8443"),
        ("'http://gw.example'", "http://gw.example"),
        ("<http://gw.example>", "http://gw.example"),
        ("wss://gw.example/api/kernels/1/channels", "https://gw.example"),
        ("ws://[2001:db8::1]:80/", "http://[2001:db8::1]:80"),
        ("localhost:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        ("127.0.0.1:8080/api/v1", "http://127.0.0.1:8080"),
        ("//127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("http://bücher.example", "http://bücher.example"),
        ("http://my_host:1", "http://my_host:1"),
    ],
)
def test_urls_as_people_paste_them(pasted: str, url: str) -> None:
    assert settings.explicit_endpoint(pasted, "k") == settings.Endpoint(url, "k")


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        ("gw.example:8080/api/v1", "write https://gw.example:8080/api/v1, or http://gw.example:8080"),
        ("10.0.0.1", "write https://10.0.0.1, or http://10.0.0.1"),
        ("ftp://gw.example", "'ftp://gw.example' is not the URL of a gateway: give one like http"),
        ("http:/gw.example", "is not the URL of a gateway"),
        ("http://gw.example:port", "is not the URL of a gateway"),
        ("http://gw.example:99999", "is not the URL of a gateway"),
        ("http://[::1", "is not the URL of a gateway"),
        ("http://a b", "is not the URL of a gateway"),
        ("http://$HOST", "is not the URL of a gateway"),
        ("http://", "is not the URL of a gateway"),
        ("https://gw.example/?token=secret", "no user, query or fragment; pass a key as api_key="),
        ("https://ada:secret@gw.example", "no user, query or fragment; pass a key as api_key="),
        ("https://gw.example/#secret", "no user, query or fragment; pass a key as api_key="),
    ],
)
def test_urls_that_are_none_are_refused_with_what_to_write(pasted: str, words: str) -> None:
    with pytest.raises(errors.InvalidRequest) as raised:
        settings.explicit_endpoint(pasted, "k")
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", [None, "", "http://gw.example", "unix:///run/x.sock"])
@pytest.mark.parametrize("key", ["", " ", "lsp_a_b\n", "lsp a", "schlüssel"])
def test_an_argument_that_is_given_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, url: str | None, key: str
) -> None:
    """Not even by the environment, whose key may be somebody else's; and the message does not show it."""
    monkeypatch.setenv(settings.KEY_VARIABLE, "lsp_other")
    monkeypatch.setenv(settings.URL_VARIABLE, "https://other.example")
    with pytest.raises(errors.AuthenticationError, match="api_key") as raised:
        settings.explicit_endpoint(url, key)
    assert "lsp" not in str(raised.value)


@pytest.mark.parametrize("url", ["", "/", "unix", "unix:", "http://"])
def test_an_empty_url_is_not_replaced(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(settings.URL_VARIABLE, "https://other.example")
    with pytest.raises(errors.InvalidRequest, match="not the URL"):
        settings.explicit_endpoint(url, "key")


@pytest.mark.parametrize(
    "call",
    [
        lambda: llmsafespace.Sandbox(api_key=""),
        lambda: llmsafespace.Sandbox.connect("sb-x", api_key=""),
        lambda: llmsafespace.Sandbox.list(api_key=""),
        lambda: llmsafespace.WarmPool("p", api_key=""),
        lambda: llmsafespace.list_warm_pools(api_key=""),
        lambda: llmsafespace.get_warm_pool("p", api_key=""),
    ],
    ids=["Sandbox", "connect", "list", "WarmPool", "list_warm_pools", "get_warm_pool"],
)
def test_every_door_refuses_an_empty_key(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    monkeypatch.setenv(settings.KEY_VARIABLE, "lsp_other")
    with pytest.raises(errors.AuthenticationError, match="api_key is empty"):
        call()


def test_without_a_gateway_the_message_names_both_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.SandboxError, match=rf"{settings.URL_VARIABLE} and {settings.KEY_VARIABLE}"):
        llmsafespace.Sandbox()


def test_creation_body(tmp_path: Path) -> None:
    local = tmp_path / "x"
    local.write_bytes(b"\xff")
    body = requests.creation(
        runtime=None,
        security_level="standard",
        timeout=300,
        resources={"ephemeral_storage": "1Gi"},
        network_access=["pypi.org:443", "example.org"],
        use_warm_pool=True,
        warm_pool=None,
        env={"A": "1"},
        files={"a": "text", "b": b"\xff", "c": local},
        packages="pandas 'numpy<2'",
        cwd=None,
        metadata=None,
        idle_timeout=600,
        max_lifetime=None,
    )
    assert body["resources"] == {"ephemeralStorage": "1Gi"}
    assert body["networkAccess"] == {
        "egress": [{"domain": "pypi.org", "ports": [443]}, {"domain": "example.org"}]
    }
    assert body["files"]["a"] == "text"
    assert body["files"]["b"] == body["files"]["c"] == {"content": "/w==", "encoding": "base64"}
    assert body["packages"] == ["pandas", "numpy<2"]
    assert "runtime" not in body
    assert "cwd" not in body
    assert "maxLifetime" not in body


def test_small_conversions() -> None:
    assert requests.language("PY") == "python"
    assert requests.command_line(["echo", "a b"]) == "echo 'a b'"
    with pytest.raises(errors.InvalidRequest):
        requests.package_list(" ")
    with pytest.raises(errors.InvalidRequest):
        requests.network(["host:port"])
    assert files.absolute("a/b") == "/workspace/a/b"
    assert files.url_path("/tmp/a b%") == "tmp/a%20b%25"
    assert _scripts({"n": "c"}) == _scripts([{"name": "n", "content": "c"}])
