"""A sandbox's files: streamed both ways, of any size."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import httpx

from llmsafespace import models, patience
from llmsafespace.errors import GatewayUnavailable, InvalidRequest
from llmsafespace.models import FileEvent, FileInfo
from llmsafespace.patience import Patience
from llmsafespace.transport import API, Transport, decoded, last_sign, segment

Progress = Callable[[int], Any]
FileList = list[FileInfo]
_PIECE = 256 * 1024
_SENT_AT_ONCE = 64 * 1024  # so that a slow upload is seen to be alive
_WRITTEN_WITHIN = 120.0  # seconds for the answer after the last byte: the sandbox writes to its disk
_MOST = 50_000  # entries of one listing
_DEEP = 64
_LOOK_EVERY = 0.5  # seconds between two looks of a watch
_WORKSPACE = PurePosixPath("/workspace")


def absolute(path: str) -> str:
    """An absolute path inside the sandbox; relative ones are beneath /workspace."""
    return str(_WORKSPACE / path)


def url_path(path: str) -> str:
    """The path as the end of a files URL."""
    return "/".join(segment(part) for part in absolute(path).lstrip("/").split("/"))


class AsyncFiles:
    """Read, write, list and change a sandbox's files. Paths may be relative to /workspace."""

    def __init__(self, transport: Transport, sandbox_id: str) -> None:
        self._transport = transport
        self._path = f"{API}/sandboxes/{segment(sandbox_id)}/files"

    def _url(self, path: str) -> str:
        return f"{self._path}/{url_path(path)}"

    async def read(self, path: str) -> bytes:
        """A file's content. Raises NotFound."""
        buffer = io.BytesIO()
        await self._get(path, buffer, None)
        return buffer.getvalue()

    async def write(self, path: str, content: str | bytes | IO[bytes]) -> FileInfo:
        """Write a file, whole or not at all; its folders are made."""
        return await self.upload(path, content=content)

    async def list(self, path: str = "/workspace", *, depth: int = 1) -> FileList:
        """What is in a folder, `depth` levels deep."""
        params = {"path": absolute(path), "depth": depth, "limit": _MOST}
        document = await self._transport.request("GET", self._path, params=params)
        return [models.file_info(item) for item in document["items"]]

    async def stat(self, path: str) -> FileInfo:
        """One file or folder. Raises NotFound."""
        document = await self._transport.request("GET", self._url(path), params={"stat": "true"})
        return models.file_info(document)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or a folder (`recursive` when it is not empty). Raises NotFound."""
        params = {"recursive": "true"} if recursive else None
        await self._transport.request("DELETE", self._url(path), params=params)

    async def rename(self, path: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Move a file or folder. Raises InvalidRequest when there is something at `target`."""
        body = {"target": absolute(target), "overwrite": overwrite}
        return models.file_info(await self._transport.request("POST", f"{self._url(path)}/move", body=body))

    async def mkdir(self, path: str) -> FileInfo:
        """Make a folder, and those above it."""
        document = await self._transport.request("PUT", self._url(path), params={"directory": "true"})
        return models.file_info(document)

    async def watch(self, path: str = "/workspace", *, recursive: bool = False) -> AsyncIterator[FileEvent]:
        """What changes beneath a path, from the first look until the iteration is left.

        It looks twice a second; what comes and goes between two looks is not seen.
        """
        depth = _DEEP if recursive else 1
        before = await self.list(path, depth=depth)
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            after = await self.list(path, depth=depth)
            for event in changes(before, after):
                yield event
            before = after

    async def upload(
        self,
        remote: str,
        local_path: str | Path | None = None,
        content: str | bytes | IO[bytes] | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> FileInfo:
        """Write a local file, or content, to `remote`. `on_progress` hears how many bytes each step sent.

        The file appears whole or not at all. Raises InvalidRequest unless exactly one source is given.
        """
        if (local_path is None) == (content is None):
            raise InvalidRequest("upload_file: give either local_path= or content=")
        time_left = Patience(self._transport)
        while True:
            async with _opened(local_path, content) as (source, size):
                start = source.tell() if source.seekable() else None
                sent = _Sent(source, on_progress)
                began = patience.now()
                try:
                    return await self._put(remote, sent, size)
                except (httpx.TransportError, GatewayUnavailable) as error:
                    if isinstance(error, httpx.TransportError):
                        self._transport.note_break(error)
                    if start is not None:
                        source.seek(start)
                    elif sent.total:
                        raise GatewayUnavailable(
                            f"the upload to {remote} broke off ({error}), and its source cannot be read again"
                        ) from error
                    await time_left.wait(error, held=last_sign(error, began, began) - began)

    async def _put(self, remote: str, sent: _Sent, size: int | None) -> FileInfo:
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        async with self._transport.stream(
            "PUT", self._url(remote), content=sent.pieces(), headers=headers, silence=_WRITTEN_WITHIN
        ) as answer:
            await answer.aread()
            return models.file_info(decoded(answer))

    async def download(
        self,
        remote: str,
        local_path: str | Path | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> bytes | Path:
        """A file's content; with `local_path` it is streamed there, and that path is returned.

        The local file appears whole or not at all.
        """
        if local_path is None:
            buffer = io.BytesIO()
            await self._get(remote, buffer, on_progress)
            return buffer.getvalue()
        target = _target(Path(local_path), remote)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent or ".")
        try:
            with os.fdopen(handle, "wb") as sink:
                await self._get(remote, sink, on_progress)
            await asyncio.to_thread(_publish, name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)  # noqa: ASYNC240
            raise
        return target

    async def _get(self, remote: str, sink: IO[bytes], on_progress: Progress | None) -> None:
        time_left = Patience(self._transport)
        etag, furthest = "", 0
        while True:
            have = sink.tell()
            headers = {"Range": f"bytes={have}-", "If-Range": etag} if have and etag else {}
            began = alive = patience.now()
            problem: Exception
            got = _Got(sink)
            try:
                async with self._transport.stream("GET", self._url(remote), headers=headers) as answer:
                    etag = answer.headers.get("ETag", "")
                    if answer.status_code != 206 and have:
                        sink.seek(0)  # it changed meanwhile, or the range was not honoured
                        sink.truncate()
                        have = 0
                    async for piece in answer.aiter_bytes():
                        await got.add(piece)
                        alive = patience.now()
                        have += len(piece)
                        if have > furthest:
                            furthest = have
                            time_left.heard()
                        if on_progress is not None:
                            on_progress(len(piece))
                    await got.write()
                    return
            except httpx.TransportError as error:
                self._transport.note_break(error)
                problem, alive = error, last_sign(error, alive, began)
            except GatewayUnavailable as error:
                problem = error
            await got.write()
            await time_left.wait(problem, held=alive - began)


class _Got:
    """What has come of a file and is not written yet, so that the disk sees few and large writes."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._pieces: list[bytes] = []
        self._size = 0

    async def add(self, piece: bytes) -> None:
        """Take a piece; writes when enough has come."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _PIECE:
            await self.write()

    async def write(self) -> None:
        """Write what waits."""
        data, self._pieces, self._size = b"".join(self._pieces), [], 0
        if data:
            await asyncio.to_thread(self._sink.write, data)


class _Sent:
    """A body on its way, and how much of it has gone."""

    def __init__(self, source: IO[bytes], on_progress: Progress | None) -> None:
        self.total = 0
        self._source = source
        self._on_progress = on_progress

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, in pieces."""
        while data := await asyncio.to_thread(self._source.read, _PIECE):
            for start in range(0, len(data), _SENT_AT_ONCE):
                piece = data[start : start + _SENT_AT_ONCE]
                self.total += len(piece)
                yield piece
                if self._on_progress is not None:
                    self._on_progress(len(piece))


def changes(before: Iterable[FileInfo], after: Iterable[FileInfo]) -> list[FileEvent]:
    """What happened between two listings, by path: created, modified, deleted, or moved (to that path)."""
    old, new = ({info.path: info for info in listing} for listing in (before, after))
    gone = {_content(info): path for path, info in old.items() if path not in new and not info.is_directory}
    told: dict[str, str] = {}
    for path, info in new.items():
        if path not in old:
            source = gone.get(_content(info)) if not info.is_directory else None
            told[path] = "created" if source is None else "moved"
            if source is not None:
                told[source] = ""
        elif not info.is_directory and info.etag != old[path].etag:
            told[path] = "modified"
    told = {**{path: "deleted" for path in old if path not in new}, **told}
    return [FileEvent(event, path) for path, event in sorted(told.items()) if event]


def _content(info: FileInfo) -> tuple[str, int]:
    return info.etag, info.size


def _target(local: Path, remote: str) -> Path:
    """Where a download goes: a folder takes the file by its own name."""
    return local / PurePosixPath(remote).name if local.is_dir() else local


def _publish(name: str, target: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    Path(name).chmod(0o666 & ~mask)
    Path(name).replace(target)


@asynccontextmanager
async def _opened(
    local_path: str | Path | None, content: str | bytes | IO[bytes] | None
) -> AsyncIterator[tuple[IO[bytes], int | None]]:
    """What to send, and its size where it is known."""
    if local_path is not None:
        with Path(local_path).open("rb") as file:  # noqa: ASYNC230  (opening does not block for long)
            yield file, os.fstat(file.fileno()).st_size
    elif isinstance(content, str | bytes):
        data = content.encode() if isinstance(content, str) else content
        yield io.BytesIO(data), len(data)
    elif content is not None:
        yield content, None
