"""Wrong bodies are refused with the field's name, what was expected and what came."""

from __future__ import annotations

import pytest

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import conversions, ranges
from llmsafespace_gateway.rest.types import ExecuteBody, SandboxCreate
from llmsafespace_gateway.rest.types_processes import StreamCancel, StreamExecute, StreamPing, StreamRequest
from llmsafespace_gateway.rest.validation import decode


def refused(body: bytes) -> str:
    with pytest.raises(ApiError) as caught:
        conversions.create_request(decode(body, SandboxCreate), None)
    assert caught.value.code == "invalid_request"
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"runtime":3}', "body.runtime: expected str | null, got int"),
        (b"[]", "body: expected object, got array"),
        (
            b'{"runtime":"x","resources":{"cpu":[]}}',
            'body.resources.cpu: expected "500m" or a number of cores',
        ),
        (b'{"runtime":"x","resources":{"cpu":"abc"}}', 'body.resources.cpu: expected "500m"'),
        (b'{"runtime":"x","resources":{"memory":"5"}}', "body.resources.memory: expected between 1Mi"),
        (b'{"runtime":"x","resources":{"cpu":1,"gpu":2}}', "body.resources.gpu: is not a field"),
        (b'{"runtime":"x","foo":1}', "body.foo: is not a field"),
        (b'{"runtime":"x","timeout":1e9}', "body.timeout: expected float <= 2592000.0, got 1000000000.0"),
        (b'{"runtime":"x","env":{"A=":""}}', "body.env: for each key, expected str matching"),
        (b'{"runtime":"x","env":{"A":"\\u0000"}}', "body.env[...]: expected str matching"),
        (b'{"runtime":"x","networkAccess":{"ingress":true}}', "body.networkAccess.ingress: expected false"),
        (
            b'{"runtime":"x","networkAccess":{"egress":[{"domain":"a b"}]}}',
            "body.networkAccess.egress[0].domain: expected a domain",
        ),
        (b'{"runtime":"x","files":{"../x":""}}', "expected a path without `..`"),
        (b'{"runtime":"x","files":{"/etc/passwd":""}}', "expected a path beneath /workspace"),
        (
            b'{"runtime":"x","files":{"a":{"content":"!","encoding":"base64"}}}',
            "body.files['a'].content: expected base64",
        ),
        (b'{"runtime":"x","packages":["--index-url=evil"]}', "body.packages[0]: expected a package's name"),
        (b'{"runtime":"x","timezone":"Mars/Base"}', "body.timezone: expected a name as Europe/Paris"),
        (b'{"runtime":"x"', "body: expected JSON"),
        (b'{"runtime":"\xff"}', "body: expected JSON"),
        (b"[" * 100_000, "body"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, message: str) -> None:
    assert message in refused(body)


def test_a_whole_request() -> None:
    body = b"""{
        "runtime": "python:3.11", "securityLevel": "high", "timeout": 5,
        "resources": {"cpu": "2", "memory": "1Gi"},
        "networkAccess": {"egress": [{"domain": "PyPI.org.", "ports": [443, {"port": 80}]}]},
        "files": {"a.txt": "x", "/workspace/b": {"content": "AAE=", "encoding": "base64"}},
        "cwd": "sub", "idleTimeout": null, "timezone": "Europe/Berlin"
    }"""
    wanted = conversions.create_request(decode(body, SandboxCreate), "key")
    assert wanted.resources.cpu == 2.0
    assert wanted.egress[0].domain == "pypi.org"
    assert wanted.egress[0].ports == (443, 80)
    assert wanted.files == {"/workspace/a.txt": b"x", "/workspace/b": b"\x00\x01"}
    assert wanted.cwd == "/workspace/sub"
    assert wanted.idle_timeout is None
    assert wanted.idempotency_key == "key"


def test_identifiers_have_no_newline_at_their_end() -> None:
    with pytest.raises(ApiError, match="executionId"):
        decode(b'{"content": "1", "executionId": "a\\n"}', ExecuteBody)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("data.csv", "/workspace/data.csv"),
        ("workspace/data.csv", "/workspace/data.csv"),
        ("/workspace/data.csv", "/workspace/data.csv"),
        ("a//./b", "/workspace/a/b"),
        ("workspace/workspace/x", "/workspace/workspace/x"),
    ],
)
def test_paths_in_urls(path: str, file: str) -> None:
    assert conversions.url_path(path) == file


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "/workspace/../etc", "//etc", "workspace/../../etc"])
def test_paths_that_lead_out(path: str) -> None:
    with pytest.raises(ApiError):
        conversions.url_path(path)


def test_stream_messages() -> None:
    assert isinstance(decode(b'{"type":"execute","content":"1"}', StreamRequest), StreamExecute)
    assert isinstance(decode(b'{"type":"cancel","executionId":"a"}', StreamRequest), StreamCancel)
    assert isinstance(decode(b'{"type":"ping"}', StreamRequest), StreamPing)
    for wrong in (b'{"type":"shutdown"}', b'{"content":"1"}', b'{"type":"execute"}', b"1"):
        with pytest.raises(ApiError):
            decode(wrong, StreamRequest)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 5)),
        ("bytes=-3", (7, 3)),
        ("bytes=-30", (0, 10)),
        ("bytes=2-100", (2, 8)),
        ("bytes=0-1,3-4", None),
        ("lines=1-2", None),
        ("bytes=4-2", None),
        ("bytes=-", None),
    ],
)
def test_ranges(header: str | None, found: tuple[int, int] | None) -> None:
    assert ranges.resolve(header, 10) == found


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=0-0", 0), ("bytes=-0", 10)])
def test_ranges_beyond_the_end(header: str, size: int) -> None:
    with pytest.raises(ApiError) as caught:
        ranges.resolve(header, size)
    assert caught.value.status == 416


def test_entity_tags() -> None:
    assert ranges.quoted('a"b\r\nX: y') == '"abX:y"'
    assert ranges.matches('"x", W/"abc"', "abc")
    assert ranges.matches("*", "abc")
    assert not ranges.matches('"x"', "abc")
    assert ranges.if_match('"abc"') == "abc"
    assert ranges.if_match("*") == "*"
    with pytest.raises(ApiError):
        ranges.if_match('"a", "b"')
