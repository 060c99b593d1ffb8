"""IOPub without loss and without detours: a bounded queue towards the agent, no thread in between.

The queue is what was sent and what the agent has not acknowledged: libzmq's buffers on both sides and the
socket between them. The agent acknowledges by messages upstream (`ACK`, then the number of bytes that it has
taken since the start). Whoever has output to send while `QUEUE` bytes are on their way waits: the cell in
`print`, a thread, the watcher of descriptor 1 (and with it the command that writes there), a forked child.
Nobody waits with a lock, so that interrupts, control and statuses go on meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import struct
import threading
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import zmq
from ipykernel.control import CONTROL_THREAD_NAME
from ipykernel.iostream import IOPubThread
from zmq.backend import Socket as BackendSocket
from zmq.eventloop.zmqstream import ZMQStream

from .forks import renewed_in_forks

ACK = b"\x02"  # the first byte of an acknowledgement; a big-endian u64 follows
QUEUE = 8 * 1024 * 1024  # bytes on their way to the agent at which output waits
RESERVE = 4 * 1024 * 1024  # what errors, inputs and the like may have beyond that
LARGEST = 64 * 1024 * 1024 - 64 * 1024  # bytes of a message that the agent can pass on
TOO_LARGE = "llmsafespace_too_large"  # the message in the place of one that is larger
_OUTPUT = (b"stream.", b"comm")  # how topics of output begin, or end
_OUTPUT_ENDS = (b"display_data", b"execute_result")
_STATUS = b".status"
_LOOK = 20  # milliseconds between looks for an acknowledgement that another thread may have taken
_LAST_WORDS = 3.0  # seconds that the agent may take to read what an ending kernel has sent
_ALIVE = 1.0  # seconds between a forked child's looks whether its kernel lives


class IOPub(IOPubThread):
    """The socket is used under a lock by whoever has something to say; the thread keeps only timers.

    ipykernel hands each message to the thread, which costs two thread switches a message. A lock is
    enough, as libzmq allows a socket to move between threads, and a socket without a high-water mark
    never blocks. The parts are sent by one call into C code: an exception that a signal handler raises
    (KeyboardInterrupt, or the user's own for SIGALRM) cannot tear a message apart. The lock may be taken
    again by its thread: such a handler may print.
    """

    def __init__(self, socket: Any, folder: str) -> None:
        self._folder = folder
        self._send_lock = threading.RLock()
        self._send_part = partial(BackendSocket.send, socket)
        self._sent = 0
        self._acknowledged = 0
        super().__init__(socket, pipe=True)
        renewed_in_forks(self, "_send_lock", threading.RLock)

    def _setup_xpub_listener(self) -> None:
        """The one subscriber is the agent, and `wait_for_subscriber` has seen it."""

    def wait_for_subscriber(self, timeout: float) -> None:
        """Block until the agent's subscription is here, so that not even the first message is lost."""
        if not self.socket.poll(int(timeout * 1000)):
            raise TimeoutError("the agent has not subscribed to iopub")
        self.socket.recv()

    def _setup_pipe_in(self) -> None:
        """Output of forked children comes in by ipc, not by a TCP port; one message of each may wait here."""
        self._pipe_uuid = os.urandom(16)
        pipe_in = self.socket.context.socket(zmq.PULL)
        pipe_in.linger = 0
        pipe_in.rcvhwm = 1
        pipe_in.bind(self._forked_endpoint)
        self._pipe_in = ZMQStream(pipe_in, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    @property
    def _forked_endpoint(self) -> str:
        return f"ipc://{self._folder}/forked"

    def _send_from_fork(self, msg: Any) -> None:
        """A forked child hands its message to the kernel, and waits until the kernel's socket has it."""
        context = zmq.Context()
        pipe_out = context.socket(zmq.PUSH)
        pipe_out.linger = 0
        try:
            pipe_out.connect(self._forked_endpoint)
            tracker: Any = pipe_out.send_multipart([self._pipe_uuid, *msg], copy=False, track=True)
            while True:
                with contextlib.suppress(zmq.NotDone):
                    tracker.wait(_ALIVE)
                    pipe_out.linger = int(_LAST_WORDS * 1000)
                    return
                os.kill(self._master_pid, 0)  # raises when there is no kernel any more
        except ProcessLookupError:
            return
        finally:
            pipe_out.close()
            context.term()

    def send_multipart(
        self, msg: Any, flags: int = 0, copy: bool = True, track: bool = False, **_: Any
    ) -> None:
        size = sum(map(_size, msg))
        if size > LARGEST:
            msg = _too_large(msg, size)
            size = sum(map(len, msg))
        taken = self._taken_by(msg[0])
        if self._check_mp_mode():
            self._send_from_fork(msg)
            deque(taken, 0)
            return
        last = len(msg) - 1
        more = flags | zmq.SNDMORE
        marks = [more] * last + [flags]
        limit = _limit(msg[0])
        while True:
            with self._send_lock:
                if self.closed:
                    deque(taken, 0)
                    return
                if self._sent - self._acknowledged < limit or self._has_room(limit) or self._must_not_wait:
                    deque(itertools.chain(map(self._send_part, msg, marks), taken), 0)
                    self._sent += size
                    return
            self._wait()

    @property
    def _must_not_wait(self) -> bool:
        """At the end nobody may read any more, and the control thread serves interrupts and debuggers."""
        return bool(self._stopped) or threading.current_thread().name == CONTROL_THREAD_NAME

    @property
    def full(self) -> bool:
        """Whether output would have to wait now."""
        with self._send_lock:
            return not self._has_room(QUEUE)

    def taking(self, topic: bytes, taken: Iterable[Any]) -> None:
        """This thread's next message of `topic` exhausts the iterator `taken` in the moment it is sent."""
        self._local.taking = (topic, taken)

    def _taken_by(self, topic: Any) -> Iterable[Any]:
        named, taken = getattr(self._local, "taking", (None, ()))
        return taken if topic == named else ()

    def _has_room(self, limit: float) -> bool:
        """Look for acknowledgements; call with the lock."""
        with contextlib.suppress(zmq.Again):
            while True:
                message = self.socket.recv(zmq.NOBLOCK)
                if message[:1] == ACK and len(message) == 9:
                    self._acknowledged = max(self._acknowledged, struct.unpack(">Q", message[1:])[0])
        # An exception between a send and its count leaves `_sent` too small: the agent knows better.
        self._sent = max(self._sent, self._acknowledged)
        return self._sent - self._acknowledged < limit

    def _wait(self) -> None:
        """Until the socket has news, or a moment: another thread may have taken them from its descriptor."""
        poll = select.poll()
        poll.register(self.socket.FD, select.POLLIN)
        poll.poll(_LOOK)

    def finish(self) -> None:
        """Wait, within limits, until what was sent has left this process. Nothing can be sent afterwards.

        libzmq tells that by the end of the closed socket's monitor.
        """
        if self.closed or not self._send_lock.acquire(timeout=_LAST_WORDS):
            return  # and the lock is kept, so that nobody finds a closed socket
        ended = self.socket.get_monitor_socket(zmq.EVENT_MONITOR_STOPPED)
        self.socket.close(linger=int(_LAST_WORDS * 1000))
        ended.poll(int(_LAST_WORDS * 1000))


def _size(part: Any) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def _limit(topic: Any) -> float:
    """How much may be on its way when a message of this topic is sent: statuses never wait."""
    if topic.startswith(_OUTPUT) or topic.endswith(_OUTPUT_ENDS):
        return QUEUE
    return float("inf") if topic.endswith(_STATUS) else QUEUE + RESERVE


def _too_large(msg: Any, size: int) -> list[Any]:
    """What is sent in the place of a message (topic, delimiter, signature, header, parent, …) too large."""
    header = json.loads(bytes(msg[3]))
    content = {"msg_type": header["msg_type"], "size": size}
    header["msg_type"] = TOO_LARGE
    return [*msg[:3], json.dumps(header).encode(), msg[4], b"{}", json.dumps(content).encode()]
