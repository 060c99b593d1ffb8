"""ipykernel's application, set up for a sandbox: ipc only, no history file, nothing dropped, no heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import zmq
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Config

from . import standard_streams
from .iopub import IOPub

_OUT = f"{__package__}.streams.Out"
_PACK, _UNPACK = f"{__package__}.packing.pack", f"{__package__}.packing.unpack"
_KERNELS = {"python": ".python_kernel:PythonKernel", "bash": ".bash_kernel:BashKernel"}


class SandboxKernelApp(IPKernelApp):
    """One kernel behind ipc sockets in the folder of its connection file."""

    def init_poller(self) -> None:
        """The agent ends its kernels itself."""

    def init_heartbeat(self) -> None:
        """The agent sees the process end; nobody listens to heartbeats."""

    iopub_port: Any

    def init_iopub(self, context: Any) -> None:
        socket = context.socket(zmq.XPUB)
        socket.linger = 1000
        socket.sndhwm = 0  # else messages are dropped; the IOPub has a limit of its own, in bytes
        self.iopub_port = self._bind_socket(socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = IOPub(socket, os.path.dirname(self.abs_connection_file))
        self.iopub_thread.start()
        for name in ("_exit", "abort"):
            setattr(os, name, _said_first(getattr(os, name), self.iopub_thread))
        self.iopub_socket = self.iopub_thread.background_socket

    def start(self) -> None:
        """Run until shutdown. An interrupt that ends a task of the user's ends the loop, which goes on."""
        self.kernel.start()
        self.io_loop = _io_loop()
        while True:
            try:
                self.io_loop.start()
                return
            except KeyboardInterrupt:
                continue

    def io_loop_add_reader(self, descriptor: int, callback: Any) -> None:
        """Call `callback` on the kernel's loop when `descriptor` is readable."""
        _loop().add_reader(descriptor, callback)

    def io_loop_remove_reader(self, descriptor: int) -> None:
        _loop().remove_reader(descriptor)

    def init_control(self, context: Any) -> None:
        super().init_control(context)
        if not issubclass(self.kernel_class, IPythonKernel):
            self.shell_channel_thread = None  # it serves subshells, which a bash does not have

    def bound(self) -> None:
        """Tell the kernel that the process has its environment and folder now."""
        tell = getattr(self.kernel, "bound", None)
        if tell is not None:
            tell()


def _said_first(leave: Callable[..., NoReturn], iopub: IOPub) -> Callable[..., NoReturn]:
    """`leave` ends the process at once: let libzmq's thread send what it still has before.

    What a signal kills cannot wait; what was sent just before such a death may be lost.
    """
    kernel = os.getpid()

    @functools.wraps(leave)
    def wrapper(*arguments: Any) -> NoReturn:
        if os.getpid() == kernel:  # a fork of the kernel has none of its threads
            with contextlib.suppress(Exception):
                iopub.finish()
        leave(*arguments)

    return wrapper


def _io_loop() -> Any:
    from tornado.ioloop import IOLoop

    return IOLoop.current()


def _loop() -> Any:
    return _io_loop().asyncio_loop


def decide_debugger(wanted: bool) -> None:
    """Import ipykernel's debugger with or without debugpy, which costs memory and 100 ms.

    ipykernel decides at import whether it offers a debugger: hide debugpy for that moment.
    """
    if wanted or "debugpy" in sys.modules:
        importlib.import_module("ipykernel.debugger")
        return
    hidden: dict[str, Any] = {"debugpy": None}
    sys.modules.update(hidden)
    try:
        importlib.import_module("ipykernel.debugger")
    finally:
        del sys.modules["debugpy"]


def import_ahead() -> None:
    """Import what children use, so that they share it."""
    for name in (".python_kernel", ".bash_kernel", ".child", ".packing"):
        importlib.import_module(name, __package__)
    for name in ("IPython.core.completerlib", "IPython.core.magics", "jedi", "pdb"):
        _try_import(name)


def _try_import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        return


def make(connection_file: str, language: str, namespace: dict[str, Any]) -> Any:
    """An initialized application: its sockets are bound, its loop does not run yet."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    module, _, name = _KERNELS[language].partition(":")
    kernel_class = getattr(importlib.import_module(module, __package__), name)
    app = SandboxKernelApp.instance(
        config=_config(), connection_file=connection_file, kernel_class=kernel_class
    )
    app.initialize([])
    standard_streams.guard()
    if namespace and app.shell is not None:
        app.shell.push(namespace)
    return app


def _config() -> Config:
    config = Config()
    config.HistoryManager.enabled = False
    config.IPKernelApp.outstream_class = _OUT
    config.Session.packer = _PACK
    config.Session.unpacker = _UNPACK  # a name of jupyter_client's own would replace the packer, too
    config.Kernel._execute_sleep = 0.0  # streams are complete when they are flushed
    return config
