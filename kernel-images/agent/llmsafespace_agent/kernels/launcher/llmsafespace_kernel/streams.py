"""IOPub without loss and without detours: no high-water mark, no thread between a message and its socket."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import threading
import weakref
from collections import deque
from functools import partial
from typing import Any

import zmq
from ipykernel.iostream import IOPubThread, OutStream
from zmq.backend import Socket as BackendSocket
from zmq.eventloop.zmqstream import ZMQStream

_PIPE_CAPACITY = 65536
_LAST_WORDS = 3.0  # seconds that the agent may take to read what an ending kernel has sent


class IOPub(IOPubThread):
    """The socket is used under a lock by whoever has something to say; the thread keeps only timers.

    ipykernel hands each message to the thread, which costs two thread switches a message. A lock is
    enough, as libzmq allows a socket to move between threads, and a socket without a high-water mark
    never blocks. The parts are sent by one call into C code: an exception that a signal handler raises
    (KeyboardInterrupt, or the user's own for SIGALRM) cannot tear a message apart.
    """

    def __init__(self, socket: Any, folder: str) -> None:
        self._folder = folder
        self._send_lock = threading.Lock()
        self._send_part = partial(BackendSocket.send, socket)
        super().__init__(socket, pipe=True)
        _forked(self, "_send_lock", threading.Lock)

    def _setup_xpub_listener(self) -> None:
        """The one subscriber is the agent, and `wait_for_subscriber` has seen it."""

    def wait_for_subscriber(self, timeout: float) -> None:
        """Block until the agent's subscription is here, so that not even the first message is lost."""
        if not self.socket.poll(int(timeout * 1000)):
            raise TimeoutError("the agent has not subscribed to iopub")
        self.socket.recv()

    def _setup_pipe_in(self) -> None:
        """Output of forked children comes in by ipc, not by a TCP port."""
        self._pipe_uuid = os.urandom(16)
        pipe_in = self.socket.context.socket(zmq.PULL)
        pipe_in.linger = 0
        pipe_in.rcvhwm = 0
        pipe_in.bind(self._forked_endpoint)
        self._pipe_in = ZMQStream(pipe_in, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def _setup_pipe_out(self) -> tuple[Any, Any]:
        context = zmq.Context()
        pipe_out = context.socket(zmq.PUSH)
        pipe_out.linger = 3000
        pipe_out.connect(self._forked_endpoint)
        return context, pipe_out

    @property
    def _forked_endpoint(self) -> str:
        return f"ipc://{self._folder}/forked"

    def send_multipart(
        self, msg: Any, flags: int = 0, copy: bool = True, track: bool = False, **_: Any
    ) -> None:
        if self._check_mp_mode() or self.closed:
            self._really_send(msg, flags, copy, track)
            return
        last = len(msg) - 1
        more = flags | zmq.SNDMORE
        marks = [more] * last + [flags]
        with self._send_lock:
            deque(map(self._send_part, msg, marks), 0)

    def finish(self) -> None:
        """Wait, within limits, until what was sent has left this process. Nothing can be sent afterwards.

        libzmq tells that by the end of the closed socket's monitor.
        """
        if self.closed or not self._send_lock.acquire(timeout=_LAST_WORDS):
            return  # and the lock is kept, so that nobody finds a closed socket
        ended = self.socket.get_monitor_socket(zmq.EVENT_MONITOR_STOPPED)
        self.socket.close(linger=int(_LAST_WORDS * 1000))
        ended.poll(int(_LAST_WORDS * 1000))


class Out(OutStream):
    """stdout or stderr of the kernel.

    Complete before a reply: `flush` also takes what subprocesses have written to the descriptor so far.
    Text of descriptors is decoded incrementally, so that a character is never cut.
    """

    flush_interval = 0.05

    def __init__(self, *args: Any, **options: Any) -> None:
        self._flush_lock = threading.RLock()
        self._pipe_lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__(*args, **options)
        _forked(self, "_flush_lock", threading.RLock)
        _forked(self, "_pipe_lock", threading.Lock)
        _forked(self, "_buffer_lock", threading.RLock)

    def _setup_stream_redirects(self, name: str) -> None:
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

    def flush(self) -> None:
        """Send what was written so far, in order; returns when it is handed to the socket."""
        if self._fid is not None and self._is_master_process():
            self._take_pipe()
        with self._flush_lock:  # a timer's flush may have taken the text and not yet sent it
            if self._buffers:
                self._flush()

    def _flush(self) -> None:
        with self._flush_lock:  # else text of a slower thread would be overtaken
            super()._flush()


def _forked(owner: Any, attribute: str, make: Any) -> None:
    """In a forked child (multiprocessing) a lock may be held by a thread that is not there: make it new."""
    reference = weakref.ref(owner)

    def renew() -> None:
        alive = reference()
        if alive is not None:
            setattr(alive, attribute, make())

    os.register_at_fork(after_in_child=renew)
