"""stdout and stderr of a kernel: complete, in messages of less than 1 MiB, no faster than the agent."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from ipykernel.control import CONTROL_THREAD_NAME
from ipykernel.iostream import OutStream

from .encodable import encodable
from .forks import renewed_in_forks

CHUNK = 160 * 1024  # bytes of text in one message; JSON writes at most six for one, which is less than 1 MiB
_PIECE = CHUNK // 6  # characters of UTF-8 have at most four bytes, a surrogate that is spelt out six
_MANY = 16_384  # pieces that may wait however short they are
_PIPE_CAPACITY = 65536


class Out(OutStream):
    """stdout or stderr of the kernel.

    Complete before a reply: `flush` also takes what subprocesses have written to the descriptor so far.
    Text of descriptors is decoded incrementally, so that a character is never cut.

    `_buffers` holds (parent, text, bytes) in the order of writing. Whoever fills it up to a chunk sends it,
    and waits while the queue to the agent is full (see iopub): a program that prints is slowed down to what
    the agent takes. A piece leaves `_buffers` in the moment it is sent, so that an interrupt of a `print`
    that waits neither loses nor repeats what was written before.
    """

    flush_interval = 0.05
    _unsent = 0  # bytes since the last flush
    _buffers: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        self._flush_lock = threading.RLock()
        self._pipe_lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__(*args, **options)
        if not isinstance(self._buffers, deque):
            self._buffers = deque()
        renewed_in_forks(self, "_flush_lock", threading.RLock)
        renewed_in_forks(self, "_pipe_lock", threading.Lock)
        renewed_in_forks(self, "_buffer_lock", threading.RLock)
        renewed_in_forks(self, "_buffers", deque)  # what was written before the fork is the kernel's to send

    def _setup_stream_redirects(self, name: str) -> None:
        self._buffers = deque()  # before the watcher's thread begins
        super()._setup_stream_redirects(name)
        os.set_blocking(self._fid, False)

    def _watch_pipe_fd(self) -> None:
        poll = select.poll()
        poll.register(self._fid, select.POLLIN)
        while self._should_watch:
            poll.poll()
            if self._should_watch:
                self._take_pipe()

    def _take_pipe(self) -> None:
        """One read takes all that the pipe held when it was called, as it cannot hold more."""
        with self._pipe_lock, contextlib.suppress(BlockingIOError):
            data = os.read(self._fid, _PIPE_CAPACITY)
            text = self._decoder.decode(data)
            if text:
                self.write(text)

    def write(self, string: str) -> int | None:
        """Take text. Returns when less than a chunk of it has still to be sent."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.echo is not None:
            with contextlib.suppress(OSError):
                self.echo.write(string)
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        parent = self.parent_header
        for piece in pieces(string) if len(string) > _PIECE else (string,):
            self._take(parent, piece)
        return len(string)

    def _take(self, parent: dict[str, Any], text: str) -> None:
        if not text:
            return
        size = len(text)
        if not text.isascii():
            text = encodable(text)
            size = len(text.encode())
        with self._buffer_lock:
            self._buffers.append((parent, text, size))
            self._unsent += size
        if self._unsent >= CHUNK or len(self._buffers) >= _MANY or not self._is_master_process():
            self._flush()  # in a fork each time: it has no thread for later, and may end without a flush
        else:
            self._schedule_flush()

    def flush(self) -> None:
        """Send what was written so far, in order; returns when it is handed to the socket.

        The control thread flushes before each of its replies; it never waits for the queue.
        """
        if self.pub_thread is None:  # closed
            return
        if threading.current_thread().name == CONTROL_THREAD_NAME and self.pub_thread.full:
            self._schedule_flush()
            return
        if self._fid is not None and self._is_master_process():
            self._take_pipe()
        self._flush()

    def _flush(self) -> None:
        if self._flush_lock._is_owned():  # type: ignore[attr-defined]
            return  # a signal's handler prints while this thread flushes, which goes on with that text
        with self._flush_lock:  # else text of a slower thread would be overtaken
            self._flush_pending = False
            if not self._buffers:
                return
            try:
                super()._flush()
            except BaseException:
                self._schedule_flush()
                raise

    def _flush_buffers(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Chunks in order. Each leaves `_buffers` when the IOPub sends it."""
        while self._buffers and self.pub_thread is not None:
            self._unsent = 0
            waiting = deque(tuple(self._buffers))
            while waiting:
                parent, text, size = waiting.popleft()
                texts = [text]
                while waiting and size + waiting[0][2] <= CHUNK and _same(waiting[0][0], parent):
                    _, text, more = waiting.popleft()
                    texts.append(text)
                    size += more
                sent = itertools.islice(iter(self._buffers.popleft, None), len(texts))
                if self._hooks:  # they may keep the message for themselves
                    deque(sent, 0)
                self.pub_thread.taking(self.topic, sent)
                yield parent, "".join(texts)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one is other or one == other


def pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most a chunk; surrogates that make one character together stay together."""
    longest = CHUNK if text.isascii() else _PIECE
    start = 0
    while start < len(text):
        end = min(start + longest, len(text))
        earliest = end - 3
        while earliest < end < len(text) and _continues(text[end - 1], text[end]):
            end -= 1
        yield text[start:end]
        start = end


def _continues(before: str, character: str) -> bool:
    if "\udc80" <= character <= "\udcbf":  # by surrogateescape a byte that begins no character
        return True
    return "\ud800" <= before <= "\udbff" and "\udc00" <= character <= "\udfff"
