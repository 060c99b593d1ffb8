"""The kernel's stdout and stderr: what was written before a flush has been sent when the flush returns."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest
from ipykernel.iostream import OutStream

import llmsafespace_agent

LAUNCHER = Path(llmsafespace_agent.__file__).parent / "kernels" / "launcher"


def test_a_flush_waits_for_text_that_a_timer_has_taken_but_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(LAUNCHER))
    streams = importlib.import_module("llmsafespace_kernel.streams")
    taken, may_send, sent = threading.Event(), threading.Event(), threading.Event()

    def slow_flush(self: OutStream) -> None:
        self._buffers = []
        taken.set()
        assert may_send.wait(10)
        sent.set()

    monkeypatch.setattr(OutStream, "_flush", slow_flush)
    monkeypatch.setattr(OutStream, "__del__", lambda self: None, raising=False)
    out = streams.Out.__new__(streams.Out)
    out._flush_lock = threading.RLock()
    out._fid = None
    out.pub_thread = object()  # it is open
    out._buffers = ["text"]
    timer = threading.Thread(target=out._flush)
    timer.start()
    assert taken.wait(10)
    flushed = threading.Event()

    def flush() -> None:
        out.flush()
        flushed.set()

    cell = threading.Thread(target=flush)
    cell.start()
    try:
        assert not flushed.wait(0.2), "flush returned although the text had not been sent"
    finally:
        may_send.set()
        timer.join(10)
        cell.join(10)
    assert sent.is_set()
    assert flushed.is_set()
    for name in [name for name in sys.modules if name.startswith("llmsafespace_kernel")]:
        del sys.modules[name]
