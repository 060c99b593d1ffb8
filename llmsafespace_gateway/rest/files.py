"""Routes: files of a sandbox, streamed in both directions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from email.utils import formatdate
from urllib.parse import quote

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import ranges
from llmsafespace_gateway.rest.conversions import WORKSPACE, file_answer, url_path, workspace_path
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import BYTES, Query, Route
from llmsafespace_gateway.rest.types import FileAnswer, FileListAnswer, FileMoveBody
from llmsafespace_gateway.sandboxes.agent_client import unreachable, written
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import UNREADABLE
from llmsafespace_protocol.requests import (
    FileInfo,
    FileList,
    FileMove,
    FilePath,
    OpenFileRead,
    OpenFileWrite,
)

_TIMEOUT = 60.0
_PIECE = 256 * 1024
_ENTRY = 150  # bytes of a file's description, about


# -- reading ---------------------------------------------------------------------------------------------


async def list_files(call: RestHandler) -> FileListAnswer:
    """GET …/files."""
    row = await call.sandbox("files:read")
    limit = call.query("limit")
    wanted = FileList(
        path=workspace_path(call.query("path"), "query.path"), depth=call.query("depth"), limit=limit + 1
    )
    found: list[FileInfo] = await call.sandboxes.rpc(row.id, "files.list", wanted)
    truncated = len(found) > limit
    items = await bulk.run(len(found) * _ENTRY, _answers, found)
    return FileListAnswer(items=items[:limit], truncated=truncated)


def _answers(found: list[FileInfo]) -> list[FileAnswer]:
    return [file_answer(info) for info in bulk.drained(found)]


async def stat_file(call: RestHandler) -> FileAnswer:
    """GET …/files/{path}?stat=true."""
    row = await call.sandbox("files:read")
    path = url_path(call.path_values["path"])
    info: FileInfo = await call.sandboxes.rpc(row.id, "files.stat", FilePath(path=path))
    return file_answer(info)


async def read_file(call: RestHandler) -> FileAnswer | None:
    """GET and HEAD …/files/{path}."""
    if call.query("stat"):
        return await stat_file(call)
    row = await call.sandbox("files:read")
    path = url_path(call.path_values["path"])
    header = call.request.headers.get("Range")
    condition = call.request.headers.get("If-None-Match")
    head = call.request.method == "HEAD"
    wanted: tuple[int, int] | None = None
    known: FileInfo | None = None
    if head or header is not None or condition is not None:
        known = await call.sandboxes.rpc(row.id, "files.stat", FilePath(path=path))
        if known.is_directory:
            raise ApiError(
                "invalid_request", f"{path} is a folder; list it with …/files?path=", {"path": path}
            )
        if ranges.matches(condition, known.etag):
            _describe(call, known)
            call.set_status(304)
            call.finish()
            return None
        if_range = call.request.headers.get("If-Range")
        if if_range is None or ranges.matches(if_range, known.etag):
            wanted = ranges.resolve(header, known.size)
    if head and known is not None:
        _length(call, known, wanted)
        call.finish()
        return None
    await _send_file(call, row.id, path, wanted, known)
    return None


async def _send_file(
    call: RestHandler, sandbox_id: str, path: str, wanted: tuple[int, int] | None, known: FileInfo | None
) -> None:
    offset, length = wanted or (0, None)
    stream = await call.sandboxes.open(sandbox_id, OpenFileRead(path=path, offset=offset, length=length))
    try:
        info = msgspec.json.decode(await _frame(stream, FrameKind.JSON), type=FileInfo)
        if wanted is not None and known is not None and info.etag != known.etag:
            raise ApiError("conflict", f"{path} changed while it was read; read it again", {"path": path})
        if not 0 <= info.size < 2**62:
            raise unreachable("the sandbox's agent gave a file an impossible size")
        _length(call, info, wanted)
        expected = wanted[1] if wanted is not None else info.size
        await call.send(_contents(stream, expected))
        call.finish()
    except (TimeoutError, ConnectionError, *UNREADABLE) as error:
        raise unreachable() from error
    finally:
        stream.close()


async def _contents(stream: FrameStream, expected: int) -> AsyncGenerator[bytes]:
    """The DATA frames, exactly as long as was announced."""
    left = expected
    while True:
        kind, body = await asyncio.wait_for(stream.next_frame(), _TIMEOUT)
        if kind == FrameKind.END and left == 0:
            return
        if kind != FrameKind.DATA or len(body) > left:
            raise ConnectionResetError("the file did not have the length that was announced")
        left -= len(body)
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]


async def _frame(stream: FrameStream, wanted: FrameKind) -> bytes:
    kind, body = await asyncio.wait_for(stream.next_frame(), _TIMEOUT)
    if kind != wanted:
        raise ConnectionResetError("a frame of another kind was due")
    return body


def _describe(call: RestHandler, info: FileInfo) -> None:
    name = info.path.rpartition("/")[2]
    call.set_header("Content-Type", BYTES)
    call.set_header("ETag", ranges.quoted(info.etag))
    call.set_header("Last-Modified", formatdate(min(max(info.modified_at, 0.0), 2**40), usegmt=True))
    call.set_header("Accept-Ranges", "bytes")
    # What a sandbox wrote must never run in the origin of the gateway.
    call.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}")
    call.set_header("Content-Security-Policy", "sandbox; default-src 'none'")


def _length(call: RestHandler, info: FileInfo, wanted: tuple[int, int] | None) -> None:
    _describe(call, info)
    if wanted is None:
        call.set_header("Content-Length", str(info.size))
        return
    offset, length = wanted
    call.set_status(206)
    call.set_header("Content-Range", f"bytes {offset}-{offset + length - 1}/{info.size}")
    call.set_header("Content-Length", str(length))


# -- writing ---------------------------------------------------------------------------------------------


class FileUpload:
    """A body on its way into a file of a sandbox."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream
        # Read from the start: an agent that refuses in the middle says why, and then closes.
        self._answer = asyncio.ensure_future(stream.next_frame())

    async def write(self, piece: bytes) -> None:
        """Send a piece on; waits while the agent is behind."""
        if not self._answer.done():
            self._stream.send(FrameKind.DATA, piece)
            drained = asyncio.ensure_future(self._stream.drain())
            waiting: set[asyncio.Future[object]] = {drained, self._answer}  # type: ignore[arg-type]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()

    async def finish(self) -> FileInfo:
        """All was sent: the file as it is now. Raises ApiError: the agent's refusal, or unreachable."""
        self._stream.send(FrameKind.END)
        try:
            kind, body = await asyncio.wait_for(self._answer, _TIMEOUT)
            if kind != FrameKind.JSON:
                raise unreachable()
            return written(body)
        except (TimeoutError, ConnectionError, *UNREADABLE) as error:
            raise unreachable() from error
        finally:
            self._stream.close()

    def abort(self) -> None:
        """End the stream; a file that is not whole disappears."""
        self._answer.cancel()
        if not self._stream.closed:
            self._stream.abort()


async def begin_write(call: RestHandler) -> FileUpload | None:
    """Before the body of PUT …/files/{path} arrives."""
    row = await call.sandbox("files:write")
    path = url_path(call.path_values["path"])
    if call.query("directory"):
        return None
    length = call.request.headers.get("Content-Length")
    open_ = OpenFileWrite(
        path=path,
        size=int(length) if length is not None and length.isdecimal() else None,
        mode=_mode(call.query("mode")),
        if_match=ranges.if_match(call.request.headers.get("If-Match")),
    )
    with _precondition(call):
        return FileUpload(await call.sandboxes.open(row.id, open_))


def _mode(text: str) -> int:
    if not 1 <= len(text) <= 4 or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise ApiError(
            "invalid_request",
            f"query.mode: expected octal as 644, got {text[:20]!r}",
            {"field": "query.mode"},
        )
    return int(text, 8)


@contextlib.contextmanager
def _precondition(call: RestHandler) -> Iterator[None]:
    """A conflict under If-Match is a failed precondition."""
    try:
        yield
    except ApiError as error:
        if error.code == "conflict" and "If-Match" in call.request.headers:
            raise ApiError("precondition_failed", error.message, error.details) from error
        raise


async def write_file(call: RestHandler) -> FileAnswer:
    """PUT …/files/{path}: the whole body has been handed on; or `?directory=true`."""
    sandbox_id = call.path_values["sandbox_id"]
    path = url_path(call.path_values["path"])
    if not isinstance(call.upload, FileUpload):
        made: FileInfo = await call.sandboxes.rpc(sandbox_id, "files.mkdir", FilePath(path=path))
        call.audit("file.mkdir", sandbox_id, path=path)
        return file_answer(made)
    with _precondition(call):
        info = await call.upload.finish()
    call.set_header("ETag", ranges.quoted(info.etag))
    call.audit("file.write", sandbox_id, path=path, size=info.size)
    return file_answer(info)


async def delete_file(call: RestHandler) -> None:
    """DELETE …/files/{path}."""
    row = await call.sandbox("files:write")
    path = url_path(call.path_values["path"])
    await call.sandboxes.rpc(row.id, "files.remove", FilePath(path=path, recursive=call.query("recursive")))
    call.audit("file.delete", row.id, path=path)


async def move_file(call: RestHandler) -> FileAnswer:
    """POST …/files/{path}/move."""
    body: FileMoveBody = call.body
    row = await call.sandbox("files:write")
    wanted = FileMove(
        source=url_path(call.path_values["path"]),
        target=workspace_path(body.target, "body.target"),
        overwrite=body.overwrite,
    )
    info: FileInfo = await call.sandboxes.rpc(row.id, "files.move", wanted)
    call.audit("file.move", row.id, path=wanted.source, to=wanted.target)
    return file_answer(info)


_FILES = "/sandboxes/{sandbox_id}/files"

ROUTES = [
    Route(
        method="GET",
        path=_FILES,
        handle=list_files,
        scope="files:read",
        tag="Files",
        summary="What a folder holds",
        response=FileListAnswer,
        query=(
            Query("path", "the folder", default=WORKSPACE),
            Query("depth", "levels below it", "integer", 1, 1, 64),
            Query("limit", "maximum number of items to return", "integer", 10_000, 1, 50_000),
        ),
        errors=(404, 410),
    ),
    Route(
        method="GET",
        path=f"{_FILES}/{{path}}",
        handle=read_file,
        scope="files:read",
        tag="Files",
        summary="A file's content; ETag, If-None-Match, one Range",
        produces=(BYTES,),
        query=(Query("stat", "answer with what the file is, not what it holds", "boolean", False),),
        headers=(("Range", "one range of bytes"), ("If-None-Match", "an ETag: 304 when it is still so")),
        errors=(404, 410, 416),
    ),
    Route(
        method="PUT",
        path=f"{_FILES}/{{path}}",
        handle=write_file,
        begin=begin_write,
        upload=True,
        scope="files:write",
        tag="Files",
        summary="Write a file whole, of any size; or make a folder. Parents are made",
        response=FileAnswer,
        query=(
            Query("directory", "make a folder instead", "boolean", False),
            Query("mode", "permission bits, octal", default="644"),
        ),
        headers=(("If-Match", "only if the file still has this ETag"),),
        errors=(404, 410, 412),
    ),
    Route(
        method="DELETE",
        path=f"{_FILES}/{{path}}",
        handle=delete_file,
        scope="files:write",
        tag="Files",
        summary="Remove a file or folder",
        status=204,
        query=(Query("recursive", "remove a folder that is not empty", "boolean", False),),
        errors=(404, 409, 410),
    ),
    Route(
        method="POST",
        path=f"{_FILES}/{{path}}/move",
        handle=move_file,
        scope="files:write",
        tag="Files",
        summary="Move a file or folder",
        request=FileMoveBody,
        response=FileAnswer,
        errors=(404, 409, 410),
    ),
]
