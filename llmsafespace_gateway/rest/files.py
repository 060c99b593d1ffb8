"""Routes: files of a sandbox, streamed in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from email.utils import formatdate
from urllib.parse import quote

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import ranges
from llmsafespace_gateway.rest.conversions import WORKSPACE, file_answer, url_path, workspace_path
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import BYTES, Query, Routes
from llmsafespace_gateway.rest.types import FileAnswer, FileListAnswer, FileMoveBody
from llmsafespace_gateway.services.files import FileUpload
from llmsafespace_gateway.services.types import SandboxRow
from llmsafespace_protocol.requests import FileInfo, FileList, FileMove, OpenFileWrite

_ENTRY = 150  # bytes of a file's description, about


# -- reading ---------------------------------------------------------------------------------------------

_FILES = "/sandboxes/{sandbox_id}/files"
ROUTES = Routes("Files", on="sandbox")


@ROUTES(
    "GET",
    _FILES,
    scope="files:read",
    query=(
        Query("path", "the folder", default=WORKSPACE),
        Query("depth", "levels below it", "integer", 1, 1, 64),
        Query("limit", "maximum number of items to return", "integer", 10_000, 1, 50_000),
    ),
    errors=(404, 410),
)
async def list_files(call: RestHandler, row: SandboxRow) -> FileListAnswer:
    """What a folder holds."""
    limit = call.query("limit")
    path = workspace_path(call.query("path"), "query.path")
    found = await call.services.files.list(
        row, FileList(path=path, depth=call.query("depth"), limit=limit + 1)
    )
    truncated = len(found) > limit
    items = await bulk.run(len(found) * _ENTRY, _answers, found)
    return FileListAnswer(items=items[:limit], truncated=truncated)


def _answers(found: list[FileInfo]) -> list[FileAnswer]:
    return [file_answer(info) for info in bulk.drained(found)]


@ROUTES(
    "GET",
    f"{_FILES}/{{path}}",
    scope="files:read",
    produces=(BYTES,),
    query=(Query("stat", "answer with what the file is, not what it holds", "boolean", False),),
    headers=(("Range", "one range of bytes"), ("If-None-Match", "an ETag: 304 when it is still so")),
    errors=(404, 410, 416),
)
async def read_file(call: RestHandler, row: SandboxRow) -> FileAnswer | None:
    """A file's content; ETag, If-None-Match, one Range."""
    path = url_path(call.path_values["path"])
    if call.query("stat"):
        return file_answer(await call.services.files.stat(row, path))
    header = call.request.headers.get("Range")
    condition = call.request.headers.get("If-None-Match")
    head = call.request.method == "HEAD"
    wanted: tuple[int, int] | None = None
    known: FileInfo | None = None
    if head or header is not None or condition is not None:
        known = await call.services.files.stat(row, path)
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
    async with call.services.files.read(row, path, *(wanted or ())) as (info, pieces):
        if wanted is not None and known is not None and info.etag != known.etag:
            raise ApiError("conflict", f"{path} changed while it was read; read it again", {"path": path})
        _length(call, info, wanted)
        await call.send(pieces)
        call.finish()
    return None


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


async def begin_write(call: RestHandler, row: SandboxRow) -> FileUpload | None:
    """Before the body of PUT …/files/{path} arrives."""
    path = url_path(call.path_values["path"])
    if call.query("directory"):
        return None
    length = call.request.headers.get("Content-Length")
    wanted = OpenFileWrite(
        path=path,
        size=int(length) if length is not None and length.isdecimal() else None,
        mode=_mode(call.query("mode")),
        if_match=ranges.if_match(call.request.headers.get("If-Match")),
    )
    with _precondition(call):
        return await call.services.files.begin_write(row, wanted)


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


@ROUTES(
    "PUT",
    f"{_FILES}/{{path}}",
    action="file.write",
    begin=begin_write,
    upload=True,
    scope="files:write",
    query=(
        Query("directory", "make a folder instead", "boolean", False),
        Query("mode", "permission bits, octal", default="644"),
    ),
    headers=(("If-Match", "only if the file still has this ETag"),),
    errors=(404, 410, 412),
)
async def write_file(call: RestHandler, row: SandboxRow) -> FileAnswer:
    """Write a file whole, of any size; or make a folder. Parents are made."""
    files = call.services.files
    if not isinstance(call.upload, FileUpload):
        return file_answer(await files.make_folder(call.caller, row, url_path(call.path_values["path"])))
    with _precondition(call):
        info = await files.finish_write(call.caller, row, call.upload)
    call.set_header("ETag", ranges.quoted(info.etag))
    return file_answer(info)


@ROUTES(
    "DELETE",
    f"{_FILES}/{{path}}",
    action="file.delete",
    scope="files:write",
    status=204,
    query=(Query("recursive", "remove a folder that is not empty", "boolean", False),),
    errors=(404, 409, 410),
)
async def delete_file(call: RestHandler, row: SandboxRow) -> None:
    """Remove a file or folder."""
    path, recursive = url_path(call.path_values["path"]), call.query("recursive")
    await call.services.files.delete(call.caller, row, path, recursive=recursive)


@ROUTES(
    "POST",
    f"{_FILES}/{{path}}/move",
    action="file.move",
    scope="files:write",
    request=FileMoveBody,
    errors=(404, 409, 410),
)
async def move_file(call: RestHandler, row: SandboxRow) -> FileAnswer:
    """Move a file or folder."""
    body: FileMoveBody = call.body
    wanted = FileMove(
        source=url_path(call.path_values["path"]),
        target=workspace_path(body.target, "body.target"),
        overwrite=body.overwrite,
    )
    return file_answer(await call.services.files.move(call.caller, row, wanted))
