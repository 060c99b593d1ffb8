"""The streams that carry files: read, write, watch."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from llmsafespace_agent.server.errors import AgentError, invalid
from llmsafespace_agent.server.files import Upload, refusals
from llmsafespace_agent.server.watching import Watch
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import (
    FileEvent,
    FileInfo,
    Opened,
    OpenFileRead,
    OpenFileWatch,
    OpenFileWrite,
)

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent

_CHUNK = 256 * 1024
_PATIENCE = 10.0  # seconds for a refused upload's rest, so that the peer reads the refusal
_REST = 64 * 1024 * 1024
DISK = ThreadPoolExecutor(2, thread_name_prefix="disk")


async def read_file(agent: Agent, stream: FrameStream, open_: OpenFileRead) -> None:
    """Send a file, as fast as the peer takes it."""
    if open_.offset < 0 or (open_.length is not None and open_.length < 0):
        raise invalid("offset and length must not be negative")
    handle, info = agent.files.open_for_reading(open_.path)
    try:
        if open_.offset > info.size:
            raise AgentError(
                "range_not_satisfiable", f"the file has {info.size} bytes only", {"size": info.size}
            )
        _send(stream, Opened())
        _send(stream, info)
        left = info.size - open_.offset if open_.length is None else open_.length
        await _send_range(stream, handle, open_.offset, left, open_.path)
        stream.send(FrameKind.END)
    finally:
        os.close(handle)


async def _send_range(stream: FrameStream, handle: int, offset: int, left: int, path: str) -> None:
    loop = asyncio.get_running_loop()
    while left > 0 and not stream.closed:
        with refusals(path):
            data = await loop.run_in_executor(DISK, os.pread, handle, min(_CHUNK, left), offset)
        if not data:
            return
        stream.send(FrameKind.DATA, data)
        offset += len(data)
        left -= len(data)
        await stream.drain()


async def write_file(agent: Agent, stream: FrameStream, open_: OpenFileWrite) -> None:
    """Take a file; it appears when it is whole. A refusal in the midst of it is sent after `Opened`."""
    if open_.size is not None and open_.size < 0:
        raise invalid("size must not be negative")
    upload = Upload(agent.files, open_.path, open_.mode, open_.if_match)
    try:
        _send(stream, Opened())
        transfer = _Transfer(stream, upload, open_.size)
        try:
            _send(stream, await transfer.receive())
        except AgentError as error:
            _send(stream, error.on_wire())
            await transfer.discard()
    finally:
        upload.close()


class _Transfer:
    """The frames of one upload."""

    def __init__(self, stream: FrameStream, upload: Upload, size: int | None) -> None:
        self._stream = stream
        self._upload = upload
        self._size = size
        self._received = 0
        self._whole = False

    async def receive(self) -> FileInfo:
        """Take the file up to its END. Raises AgentError, ConnectionError."""
        loop = asyncio.get_running_loop()
        while (data := await self._next()) is not None:
            if self._size is not None and self._received > self._size:
                raise invalid(f"more than the announced {self._size} bytes were sent")
            await loop.run_in_executor(DISK, self._upload.write, data)
        if self._size is not None and self._received != self._size:
            raise invalid(f"{self._received} of the announced {self._size} bytes were sent")
        return await loop.run_in_executor(DISK, self._upload.commit)

    async def discard(self) -> None:
        """Read on, within bounds: a stream closed with unread data loses the refusal on its way."""
        limit = self._received + _REST
        with contextlib.suppress(TimeoutError, ConnectionError, AgentError):
            async with asyncio.timeout(_PATIENCE):
                while not self._whole and self._received < limit:
                    await self._next()

    async def _next(self) -> bytes | None:
        kind, data = await self._stream.next_frame()
        if kind == FrameKind.END:
            self._whole = True
            return None
        if kind != FrameKind.DATA:
            raise invalid(f"a file is sent in DATA frames and one END (got kind {kind})")
        self._received += len(data)
        return data


async def watch_files(agent: Agent, stream: FrameStream, open_: OpenFileWatch) -> None:
    """Tell changes until the stream ends. A peer that does not read is told nothing more, and closed."""

    def changed(event: str, path: str) -> None:
        if stream.writable:
            _send(stream, FileEvent(event, path))
        else:
            stream.abort()

    watch = Watch(agent.files.beneath, open_.path, open_.recursive, changed)
    try:
        _send(stream, Opened())
        stream.receive(lambda kind, body: stream.close())
        await stream.wait_closed()
    finally:
        watch.close()


def _send(stream: FrameStream, document: msgspec.Struct) -> None:
    stream.send(FrameKind.JSON, msgspec.json.encode(document))
