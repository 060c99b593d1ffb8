"""Request and answer heads at the egress proxy."""

from __future__ import annotations

import pytest

from llmsafespace_gateway.egress.http_head import BadRequest, answer_head, origin_head, parse_request


def head(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def test_connect() -> None:
    request = parse_request(head("CONNECT Example.COM:443 HTTP/1.1", "Host: other.example:443"))
    assert (request.tunnel, request.host, request.port) == (True, "example.com", 443)
    assert parse_request(head("CONNECT [::1]:443 HTTP/1.1", "Host: [::1]:443")).host == "::1"


def test_plain_request_goes_to_the_host_that_was_checked() -> None:
    request = parse_request(
        head(
            "POST http://Example.com:8080/a/b?c=d#e HTTP/1.1",
            "Host: victim.example",
            "Connection: keep-alive, X-Secret",
            "X-Secret: 1",
            "Proxy-Authorization: Basic eA==",
            "Content-Length: 3",
            "Expect: 100-continue",
            "Accept: */*",
        )
    )
    assert (request.host, request.port, request.body_length) == ("example.com", 8080, 3)
    assert origin_head(request).decode().split("\r\n") == [
        "POST /a/b?c=d HTTP/1.1",
        "Host: example.com:8080",
        "Content-Length: 3",
        "Accept: */*",
        "Connection: close",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET / HTTP/1.1"], 400),
        (["GET /path"], 400),
        (["GET https://example.com/ HTTP/1.1"], 400),
        (["GET ftp://example.com/ HTTP/1.1"], 400),
        (["GET http://user:pw@example.com/ HTTP/1.1"], 400),
        (["GET http://example.com:99999/ HTTP/1.1"], 400),
        (["GET http://example.com:" + "9" * 5000 + "/ HTTP/1.1"], 400),
        (["GET http://[::1/ HTTP/1.1"], 400),
        (["GET http:// HTTP/1.1"], 400),
        (["GET http://example.com/ HTTP/2"], 400),
        (["GE T http://example.com/ HTTP/1.1"], 400),
        (["CONNECT example.com HTTP/1.1"], 400),
        (["CONNECT example.com:0 HTTP/1.1"], 400),
        (["CONNECT example.com:" + "9" * 5000 + " HTTP/1.1"], 400),
        (["CONNECT example.com:https HTTP/1.1"], 400),
        (["CONNECT example.com:+443 HTTP/1.1"], 400),
        (["CONNECT :443 HTTP/1.1"], 400),
        (["CONNECT 127.1:443 HTTP/1.1"], 400),
        (["GET http://example.com/ HTTP/1.1", "Name : value"], 400),
        (["GET http://example.com/ HTTP/1.1", " folded"], 400),
        (["GET http://example.com/ HTTP/1.1", "A: b\nC: d"], 400),
        (["GET http://example.com/ HTTP/1.1", "A: b\0"], 400),
        (["POST http://example.com/ HTTP/1.1", "Content-Length: 1", "Content-Length: 2"], 400),
        (["POST http://example.com/ HTTP/1.1", "Content-Length: -1"], 400),
        (["POST http://example.com/ HTTP/1.1", "Content-Length: " + "9" * 5000], 400),
        (["POST http://example.com/ HTTP/1.1", "Transfer-Encoding: chunked"], 411),
        ([""], 400),
    ],
)
def test_refused_heads(lines: list[str], status: int) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_request(head(*lines, "Host: example.com"))
    assert refused.value.status == status


REQUEST = parse_request(head("GET http://example.com/ HTTP/1.1", "Host: example.com"))


def test_answer() -> None:
    answer = answer_head(
        REQUEST, head("HTTP/1.1 200 OK", "Content-Length: 2", "Connection: keep-alive", "Keep-Alive: 5")
    )
    assert answer == head("HTTP/1.1 200 OK", "Content-Length: 2", "Connection: close")
    assert answer_head(REQUEST, head("HTTP/1.1 100 Continue")) is None


@pytest.mark.parametrize(
    "lines",
    [
        ["SSH-2.0"],
        ["HTTP/1.1 abc OK"],
        ["HTTP/1.1 200 OK", "bad"],
        ["HTTP/1.1 200 OK", "A: b\nC: d"],
        ["HTTP/1.1 200 OK", "Content-Length: 1", "Content-Length: 2"],
        ["HTTP/1.1 200 OK", "Content-Length: " + "9" * 5000],
        [""],
    ],
)
def test_answers_that_are_not_http(lines: list[str]) -> None:
    with pytest.raises(BadRequest) as refused:
        answer_head(REQUEST, head(*lines))
    assert refused.value.status == 502
