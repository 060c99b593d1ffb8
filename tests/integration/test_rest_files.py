"""Files over REST: streamed, conditional, in ranges, and never outside the workspace."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.rest_support import Client, is_error


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("rest-files")) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(client: Client) -> Iterator[str]:
    with client.sandbox() as made:
        yield made


@pytest.fixture(scope="module")
def files(sandbox: str) -> str:
    return f"/sandboxes/{sandbox}/files"


def test_write_read_list_move_delete(client: Client, files: str) -> None:
    written = client.put(f"{files}/a/b c.txt", content=b"hello", params={"mode": "600"})
    assert written.status_code == 200, written.text
    assert written.json()["path"] == "/workspace/a/b c.txt"
    assert (written.json()["size"], written.json()["mode"]) == (5, 0o600)
    read = client.get(f"{files}/workspace/a/b%20c.txt")
    assert read.content == b"hello"
    assert read.headers["etag"] == written.headers["etag"]
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["x-content-type-options"] == "nosniff"
    assert client.get(f"{files}/%2Fworkspace%2Fa%2Fb%20c.txt").content == b"hello"
    head = client.head(f"{files}/a/b c.txt")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "5", b"")
    assert client.get(f"{files}/a/b c.txt", params={"stat": "true"}).json() == written.json()

    moved = client.post(f"{files}/a/b c.txt/move", json={"target": "moved.txt"})
    assert moved.json()["path"] == "/workspace/moved.txt"
    is_error(client.get(f"{files}/a/b c.txt"), 404, "not_found")
    client.put(f"{files}/other.txt", content=b"other")
    is_error(client.post(f"{files}/other.txt/move", json={"target": "moved.txt"}), 409, "conflict")
    over = client.post(f"{files}/other.txt/move", json={"target": "moved.txt", "overwrite": True})
    assert over.status_code == 200
    assert client.get(f"{files}/moved.txt").content == b"other"

    assert client.put(f"{files}/folder/deep", params={"directory": "true"}).json()["isDirectory"]
    client.put(f"{files}/folder/deep/x", content=b"")
    paths = [row["path"] for row in client.get(files, params={"depth": 3, "path": "folder"}).json()["items"]]
    assert paths == ["/workspace/folder/deep", "/workspace/folder/deep/x"]
    is_error(client.delete(f"{files}/folder"), 409, "conflict")
    assert client.delete(f"{files}/folder", params={"recursive": "true"}).status_code == 204
    is_error(client.delete(f"{files}/folder"), 404, "not_found")


def test_a_file_named_move(client: Client, files: str) -> None:
    assert client.put(f"{files}/dir/move", content=b"m").status_code == 200
    assert client.get(f"{files}/dir/move").content == b"m"


def test_large_files_go_through_whole(client: Client, files: str) -> None:
    block = os.urandom(1024 * 1024)
    digest = hashlib.sha256()

    def body() -> Iterator[bytes]:
        for _ in range(48):
            digest.update(block)
            yield block

    assert client.put(f"{files}/large.bin", content=body()).json()["size"] == 48 * len(block)
    received = hashlib.sha256()
    with client.stream("GET", f"{files}/large.bin") as answer:
        assert answer.headers["content-length"] == str(48 * len(block))
        for piece in answer.iter_bytes():
            received.update(piece)
    assert received.digest() == digest.digest()
    assert client.delete(f"{files}/large.bin").status_code == 204


def test_ranges(client: Client, files: str) -> None:
    client.put(f"{files}/digits", content=b"0123456789")
    part = client.get(f"{files}/digits", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    assert client.get(f"{files}/digits", headers={"Range": "bytes=-3"}).content == b"789"
    whole = client.get(f"{files}/digits", headers={"Range": "bytes=0-1,3-4"})
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    beyond = client.get(f"{files}/digits", headers={"Range": "bytes=10-"})
    is_error(beyond, 416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == "bytes */10"
    stale = client.get(f"{files}/digits", headers={"Range": "bytes=2-4", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, b"0123456789")


def test_conditions(client: Client, files: str) -> None:
    etag = client.put(f"{files}/c.txt", content=b"one").headers["etag"]
    same = client.get(f"{files}/c.txt", headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    changed = client.put(f"{files}/c.txt", content=b"two", headers={"If-Match": etag})
    assert changed.status_code == 200
    refused = client.put(f"{files}/c.txt", content=b"three", headers={"If-Match": etag})
    is_error(refused, 412, "precondition_failed")
    is_error(client.put(f"{files}/new.txt", content=b"x", headers={"If-Match": "*"}), 412)
    assert client.get(f"{files}/c.txt").content == b"two"


def test_nothing_outside_the_workspace(client: Client, sandbox: str, files: str) -> None:
    for path in (
        "%2Fetc%2Fpasswd",
        "..%2F..%2Fetc%2Fpasswd",
        "a/..%2F..%2F..%2Fetc%2Fpasswd",
        "%2Fproc%2Fself%2Fenviron",
    ):
        is_error(client.get(f"{files}/{path}"), 400, "invalid_request")
        is_error(client.put(f"{files}/{path}", content=b"x"), 400, "invalid_request")
    client.execute(sandbox, "import os; os.symlink('/etc', 'out'); os.symlink('/etc/passwd', 'file')")
    for path in ("out/passwd", "file"):
        is_error(client.get(f"{files}/{path}"), 400, "invalid_request")
    is_error(client.get(f"{files}/dir"), 400, "invalid_request")
    client.execute(sandbox, "os.mkfifo('fifo')")
    is_error(client.get(f"{files}/fifo"), 400, "invalid_request")


def test_names_that_are_not_plain(client: Client, files: str) -> None:
    for name in (
        "ä ö.txt",
        "a%2Fb".replace("%2F", "b"),
        "semi;colon",
        'quo"te',
        "new\nline",
        "#hash?",
        "100%",
    ):
        address = f"{files}/{quote(name, safe='')}"
        assert client.put(address, content=name.encode()).status_code == 200
        read = client.get(address)
        assert read.content.decode() == name
        assert "\n" not in read.headers["content-disposition"]


def test_a_full_disk_is_said(client: Client) -> None:
    with client.sandbox(resources={"ephemeralStorage": "32Mi"}, useWarmPool=False) as small:
        answer = client.put(f"/sandboxes/{small}/files/big", content=bytes(64 * 1024 * 1024))
        is_error(answer)
        assert answer.status_code in (429, 400)
        assert client.get(f"/sandboxes/{small}/files").json()["items"] == []


def test_who_may(gateway: Any, client: Client, files: str) -> None:
    key = client.post("/user/apikeys", json={"scopes": ["files:read"]}).json()["key"]
    client.put(f"{files}/mine", content=b"x")
    with Client(gateway.url, key) as reader:
        assert reader.get(f"{files}/mine").content == b"x"
        for answer in (
            reader.put(f"{files}/mine", content=b"y"),
            reader.delete(f"{files}/mine"),
            reader.post(f"{files}/mine/move", json={"target": "t"}),
        ):
            is_error(answer, 403, "forbidden")
    with Client(
        gateway.url, gateway.key("rest-files-stranger", "developer", "rest-files-elsewhere")
    ) as stranger:
        is_error(stranger.get(f"{files}/mine"), 404, "not_found")
        is_error(stranger.put(f"{files}/mine", content=b"y"), 404, "not_found")
    assert client.get(f"{files}/mine").content == b"x"
