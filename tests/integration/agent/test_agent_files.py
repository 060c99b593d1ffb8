"""Files through the agent: streams and calls, and no way out of the workspace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_protocol.frames import FrameKind

from .conftest import Refused, document, frame


async def write(agent: Any, path: str, data: bytes, **fields: Any) -> dict[str, Any]:
    stream, _ = await agent.open("file_write", path=path, **fields)
    for start in range(0, len(data), 100_000):
        stream.send(FrameKind.DATA, data[start : start + 100_000])
    stream.send(FrameKind.END)
    answer = await document(stream)
    if "code" in answer:
        raise AssertionError(answer)
    return answer


async def read(agent: Any, path: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
    stream, _ = await agent.open("file_read", path=path, **fields)
    info = await document(stream)
    data = b""
    while (got := await frame(stream))[0] == FrameKind.DATA:
        data += got[1]
    assert got[0] == FrameKind.END
    return info, data


async def test_round_trip_ranges_and_listing(agent: Any) -> None:
    data = os.urandom(3_000_000)
    written = await write(agent, "a/b/data.bin", data, size=len(data), mode=0o600)
    assert written["path"] == f"{agent.workspace}/a/b/data.bin"
    info, got = await read(agent, f"{agent.workspace}/a/b/data.bin")
    assert got == data
    assert info == written
    assert (await read(agent, "a/b/data.bin", offset=10, length=5))[1] == data[10:15]
    assert (await read(agent, "a/b/data.bin", offset=len(data)))[1] == b""
    with pytest.raises(Refused) as caught:
        await read(agent, "a/b/data.bin", offset=len(data) + 1)
    assert caught.value.error.code == "range_not_satisfiable"
    listed = await agent.calls("files.list", path=str(agent.workspace), depth=3)
    assert [one.path.removeprefix(f"{agent.workspace}/") for one in listed] == ["a", "a/b", "a/b/data.bin"]
    assert [one.is_directory for one in listed] == [True, True, False]
    assert await agent.calls("files.stat", path="a/b/data.bin") == listed[2]
    assert not (await write(agent, "empty", b"")).get("size")


async def test_a_file_appears_whole_or_not_at_all(agent: Any) -> None:
    await write(agent, "f", b"old")
    stream, _ = await agent.open("file_write", path="f", size=10)
    stream.send(FrameKind.DATA, b"12345")
    stream.send(FrameKind.END)
    assert (await document(stream))["code"] == "invalid_request"
    stream, _ = await agent.open("file_write", path="f")
    stream.send(FrameKind.DATA, b"12345")
    stream.close()
    await stream.wait_closed()
    assert (await read(agent, "f"))[1] == b"old"
    while sorted(os.listdir(agent.workspace)) != ["f"]:
        await agent.calls("status")


async def test_a_changed_file_is_not_overwritten(agent: Any) -> None:
    first = await write(agent, "f", b"one")
    second = await write(agent, "f", b"two", ifMatch=first["etag"])
    assert second["etag"] != first["etag"]
    for fields in ({"ifMatch": first["etag"]}, {"path": "gone", "ifMatch": "*"}):
        with pytest.raises(Refused) as caught:
            await agent.open("file_write", **{"path": "f", **fields})
        assert caught.value.error.code == "conflict"


async def test_folders_moves_and_removal(agent: Any) -> None:
    calls = agent.calls
    assert (await calls("files.mkdir", path="d/e")).is_directory
    await write(agent, "d/e/f", b"x")
    with pytest.raises(Refused) as caught:
        await calls("files.remove", path="d")
    assert caught.value.error.code == "conflict"
    moved = await calls("files.move", source="d/e/f", target="new/g")
    assert moved.path == f"{agent.workspace}/new/g"
    await write(agent, "h", b"y")
    with pytest.raises(Refused) as caught:
        await calls("files.move", source="h", target="new/g")
    assert caught.value.error.code == "conflict"
    await calls("files.move", source="h", target="new/g", overwrite=True)
    assert (await read(agent, "new/g"))[1] == b"y"
    await calls("files.remove", path="new/g")
    await calls("files.remove", path="d", recursive=True)
    assert [one.path for one in await calls("files.list")] == [f"{agent.workspace}/new"]
    for path in ("", ".", str(agent.workspace)):
        with pytest.raises(Refused) as caught:
            await calls("files.remove", path=path, recursive=True)
        assert caught.value.error.code == "invalid_request"


async def test_no_path_leads_out(agent: Any) -> None:
    outside = agent.folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    Path(agent.workspace, "link").symlink_to(outside)
    Path(agent.workspace, "file").symlink_to(outside / "secret")
    Path(agent.workspace, "up").symlink_to("../outside")
    Path(agent.workspace, "proc").symlink_to("/proc/self/root")
    Path(agent.workspace, "loop").symlink_to("loop")
    escapes = ["../outside/secret", "link/secret", "file", "up/secret", f"{outside}/secret", "/etc/passwd"]
    escapes += ["proc/etc/passwd", "loop", "a/../../outside/secret", f"{agent.workspace}x/secret", "x\0y"]
    for path in escapes:
        for kind in ("file_read", "file_watch"):
            with pytest.raises(Refused) as caught:
                await agent.open(kind, path=path)
            assert caught.value.error.code == "invalid_request", path
        with pytest.raises(Refused):
            await agent.calls("files.stat", path=path)
        with pytest.raises(Refused):
            await agent.calls("files.list", path=path)
        with pytest.raises(Refused):
            await agent.calls("files.move", source="link", target=path)
    for path in ("../outside/new", "link/new", "up/new", f"{outside}/new", "proc/tmp/new"):
        with pytest.raises(Refused):
            await agent.open("file_write", path=path)
        with pytest.raises(Refused):
            await agent.calls("files.mkdir", path=path)
        with pytest.raises(Refused):
            await agent.calls("files.remove", path=path, recursive=True)
    await write(agent, "file", b"mine")
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "s"
    await agent.calls("files.remove", path="link", recursive=True)
    assert (outside / "secret").exists()


async def test_what_is_no_file_is_not_read(agent: Any) -> None:
    os.mkfifo(agent.workspace / "pipe")
    Path(agent.workspace, "folder").mkdir()
    for path in ("pipe", "folder"):
        with pytest.raises(Refused) as caught:
            await agent.open("file_read", path=path)
        assert caught.value.error.code == "invalid_request"
    with pytest.raises(Refused) as caught:
        await agent.open("file_read", path="missing")
    assert caught.value.error.code == "not_found"
    with pytest.raises(Refused) as caught:
        await agent.open("file_write", path="folder")
    assert caught.value.error.code == "conflict"


async def test_links_within_the_workspace_are_followed(agent: Any) -> None:
    await write(agent, "d/real", b"r")
    Path(agent.workspace, "short").symlink_to("d/real")
    assert (await read(agent, "short"))[1] == b"r"
    assert (await agent.calls("files.list"))[1].size == 1


async def test_names_that_are_no_text_can_be_listed(agent: Any) -> None:
    Path(os.fsdecode(bytes(agent.workspace) + b"/\xff\xfe")).write_bytes(b"")
    (listed,) = await agent.calls("files.list")
    assert "�" in listed.path


async def test_changes_are_told(agent: Any) -> None:
    stream, _ = await agent.open("file_watch", path=".", recursive=True)
    work = agent.workspace

    async def told(event: str, path: str) -> None:
        while (await document(stream)) != {"event": event, "path": f"{work}/{path}"}:
            pass

    await write(agent, "new", b"1")
    await told("created", "new")
    await write(agent, "new", b"2")
    await told("modified", "new")
    await agent.calls("files.mkdir", path="sub")
    await told("created", "sub")
    (work / "sub" / "x").write_text("x")
    await told("created", "sub/x")
    await agent.calls("files.move", source="new", target="other")
    await told("moved", "new")
    await told("created", "other")
    await agent.calls("files.remove", path="other")
    await told("deleted", "other")
    one, _ = await agent.open("file_watch", path="sub/x")
    (work / "sub" / "y").write_text("y")
    (work / "sub" / "x").write_text("z")
    assert (await document(one)) == {"event": "modified", "path": f"{work}/sub/x"}
