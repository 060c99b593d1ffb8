"""A kernel's four channels as raw ZMQ sockets on the agent's event loop.

The ZMQ descriptor is edge-triggered (zmq_getsockopt(3), ZMQ_FD): after every read of EVENTS, and that is
after every send or receive as well, the descriptor may stay silent although messages wait. So whoever
touched a socket looks at EVENTS again, and drains.

No socket drops messages, so that none may hold many: our own kernels send output only until a number of
bytes has not been acknowledged (see the launcher's iopub). Acknowledgements go upstream on iopub, which is
an XSUB for that. Other kernels would not understand them, and have queues of their own.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import struct
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from llmsafespace_protocol.kernel_messages import CHANNELS

_log = logging.getLogger(__name__)
DELIMITER = b"<IDS|MSG>"
PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4}
_BATCH_MESSAGES = 128
_BATCH_BYTES = 4 * 1024 * 1024
_ACK = b"\x02"
_ACK_EVERY = 512 * 1024  # bytes

Receive = Callable[[str, list[bytes]], None]


@functools.cache
def zmq_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's one ZMQ context. Never terminated: that would wait for kernels still in use."""
    return zmq.Context()


def connection_info(folder: Path) -> dict[str, str | int]:
    """The connection file of a kernel whose sockets live in `folder` (jupyter_client, "Connection files").

    No key: only the owner of `folder` (mode 0700) reaches the sockets.
    """
    ports = {f"{channel}_port": port for channel, port in PORTS.items()}
    return {
        "transport": "ipc",
        "ip": str(folder / "z"),
        "key": "",
        "signature_scheme": "hmac-sha256",
        "hb_port": 5,
        **ports,
    }


class Channels:
    """Connected sockets. `receive(channel, parts)` is called on the loop; parts start with the header.

    `acknowledging`: the kernel is one of ours, and waits for acknowledgements of its output.
    """

    def __init__(self, folder: Path, receive: Receive, *, acknowledging: bool = False) -> None:
        self._acknowledging = acknowledging
        self._taken = self._acknowledged = 0  # bytes of iopub
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._again: set[str] = set()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        identity = uuid.uuid4().hex.encode()  # one for shell and stdin: input_request goes to the shell's
        for channel in PORTS:
            self._sockets[channel] = self._open(channel, identity)
        self._monitor = self._sockets["iopub"].get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for channel, socket in self._sockets.items():
            socket.connect(f"ipc://{folder / 'z'}-{PORTS[channel]}")
            self._loop.add_reader(socket.fileno(), self._drain, channel)
            self._schedule(channel)

    @staticmethod
    def _open(channel: str, identity: bytes) -> zmq.Socket[bytes]:
        socket = zmq_context().socket(zmq.XSUB if channel == "iopub" else zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0
        socket.reconnect_ivl = 5  # milliseconds; a kernel that is not ours may bind after we connect
        if channel == "iopub":
            socket.send(b"\x01")  # subscribes to everything, also after a reconnect
        elif channel == "control":
            socket.routing_id = uuid.uuid4().hex.encode()
        else:
            socket.routing_id = identity
        return socket

    @property
    def open(self) -> bool:
        """Whether `close` has not been called."""
        return bool(self._sockets)

    def send(self, channel: str, parts: Sequence[bytes | memoryview]) -> None:
        """Queue a message; never blocks. KeyError for a channel that takes none."""
        if channel == "iopub" or channel not in CHANNELS:
            raise KeyError(channel)
        socket = self._sockets.get(channel)
        if socket is None:
            return
        socket.send_multipart([DELIMITER, b"", *parts], zmq.NOBLOCK)
        self._schedule(channel)

    def _schedule(self, channel: str) -> None:
        """Look at the socket once more in the next round of the loop."""
        if channel not in self._again:
            self._again.add(channel)
            self._loop.call_soon(self._drain_again, channel)

    def _drain_again(self, channel: str) -> None:
        self._again.discard(channel)
        self._drain(channel)

    def _drain(self, channel: str) -> None:
        """Take what waits, but not so much that a flooding kernel keeps everybody else waiting."""
        taken = 0
        for _ in range(_BATCH_MESSAGES):
            socket = self._sockets.get(channel)
            if socket is None:
                return
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._deliver(channel, frames)
            size = sum(map(len, frames))
            taken += size
            if channel == "iopub":
                self._acknowledge(socket, size)
            if taken > _BATCH_BYTES:
                break
        self._schedule(channel)

    def _acknowledge(self, socket: zmq.Socket[bytes], size: int) -> None:
        """Tell a kernel that waits how much has arrived; the caller reads `socket` again, see above."""
        self._taken += size
        if self._acknowledging and self._taken - self._acknowledged >= _ACK_EVERY and not socket.closed:
            self._acknowledged = self._taken
            socket.send(_ACK + struct.pack(">Q", self._taken), zmq.NOBLOCK)

    def _deliver(self, channel: str, frames: list[bytes]) -> None:
        """Hand a message on. Never raises, or the channel would fall silent: see the module."""
        try:
            start = frames.index(DELIMITER) + 2  # after the signature
        except ValueError:
            return
        if len(frames) < start + 4:
            return
        try:
            self._receive(channel, frames[start:])
        except Exception:
            _log.exception("a message of a kernel on %s was lost", channel)

    async def drained(self, timeout: float) -> None:
        """Wait until everything that a dead kernel had sent is delivered.

        Its last message is here when iopub's connection has ended, which a forked descendant of the kernel
        may delay: `timeout` seconds at most. It may also write for ever in the kernel's name: what has then
        not been read in another `timeout` seconds is given up.
        """
        ended = self._loop.create_future()

        def look() -> None:
            if not ended.done() and _readable(self._monitor):
                ended.set_result(None)

        self._loop.add_reader(self._monitor.fileno(), look)
        look()
        try:
            await asyncio.wait([ended], timeout=timeout)
        finally:
            self._loop.remove_reader(self._monitor.fileno())
        until = self._loop.time() + timeout
        while self._loop.time() < until and any(map(_readable, self._sockets.values())):
            for channel in PORTS:
                self._drain(channel)
            await asyncio.sleep(0)

    def close(self) -> None:
        """Close all sockets; what has not been read is gone."""
        if not self._sockets:
            return
        sockets, self._sockets = self._sockets, {}
        for socket in sockets.values():
            self._loop.remove_reader(socket.fileno())
        sockets["iopub"].disable_monitor()
        self._monitor.close(0)
        for socket in sockets.values():
            socket.close(0)


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
