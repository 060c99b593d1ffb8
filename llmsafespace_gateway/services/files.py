"""Use cases: files of a sandbox, streamed in both directions, of any size.

The agent is hostile: a file is passed on only as long as it was announced, and what does not keep to the
protocol ends the transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from llmsafespace_gateway.sandboxes.agent_client import unreachable, written
from llmsafespace_gateway.services.base import Caller, Service
from llmsafespace_gateway.store.rows import SandboxRow
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


class FileService(Service):
    """Methods rely on the caller's right to the sandbox, which the route has checked. All raise ApiError."""

    async def list(self, row: SandboxRow, wanted: FileList) -> list[FileInfo]:
        """What a folder holds."""
        found: list[FileInfo] = await self.sandboxes.rpc(row.id, "files.list", wanted)
        return found

    async def stat(self, row: SandboxRow, path: str) -> FileInfo:
        """A file or folder."""
        info: FileInfo = await self.sandboxes.rpc(row.id, "files.stat", FilePath(path=path))
        return info

    @contextlib.asynccontextmanager
    async def read(
        self, row: SandboxRow, path: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[tuple[FileInfo, AsyncGenerator[bytes]]]:
        """A file as it is now, and the pieces of `length` of its bytes (None: all)."""
        stream = await self.sandboxes.open(row.id, OpenFileRead(path=path, offset=offset, length=length))
        try:
            info = msgspec.json.decode(await _frame(stream, FrameKind.JSON), type=FileInfo)
            if not 0 <= info.size < 2**62:
                raise unreachable("the sandbox's agent gave a file an impossible size")
            yield info, _contents(stream, info.size if length is None else length)
        except (TimeoutError, ConnectionError, *UNREADABLE) as error:
            raise unreachable() from error
        finally:
            stream.close()

    async def begin_write(self, row: SandboxRow, wanted: OpenFileWrite) -> FileUpload:
        """Where the pieces of a new file go; `finish_write` ends it."""
        return FileUpload(wanted.path, await self.sandboxes.open(row.id, wanted))

    async def finish_write(self, caller: Caller, row: SandboxRow, upload: FileUpload) -> FileInfo:
        """The whole content was sent: the file as it is now."""
        with self.act(caller, "file.write", row.id, path=upload.path) as act:
            info = await upload.finish()
            act.details["size"] = info.size
        return info

    async def make_folder(self, caller: Caller, row: SandboxRow, path: str) -> FileInfo:
        """A folder, with its parents."""
        with self.act(caller, "file.mkdir", row.id, path=path):
            info: FileInfo = await self.sandboxes.rpc(row.id, "files.mkdir", FilePath(path=path))
        return info

    async def delete(self, caller: Caller, row: SandboxRow, path: str, *, recursive: bool) -> None:
        """Remove a file, or a folder: with what it holds only where `recursive`."""
        with self.act(caller, "file.delete", row.id, path=path):
            await self.sandboxes.rpc(row.id, "files.remove", FilePath(path=path, recursive=recursive))

    async def move(self, caller: Caller, row: SandboxRow, wanted: FileMove) -> FileInfo:
        """Move a file or folder."""
        with self.act(caller, "file.move", row.id, path=wanted.source, to=wanted.target):
            info: FileInfo = await self.sandboxes.rpc(row.id, "files.move", wanted)
        return info


class FileUpload:
    """A body on its way into a file of a sandbox."""

    def __init__(self, path: str, stream: FrameStream) -> None:
        self.path = path
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
