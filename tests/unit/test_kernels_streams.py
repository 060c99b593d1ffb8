"""The kernel's stdout and stderr: what was written before a flush has been sent when the flush returns."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from ipykernel.iostream import OutStream

import llmsafespace_agent

LAUNCHER = Path(llmsafespace_agent.__file__).parent / "kernels" / "launcher"


def test_a_flush_waits_for_text_that_a_timer_has_taken_but_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(LAUNCHER))
    from llmsafespace_kernel.streams import Out

    taken, may_send, sent = threading.Event(), threading.Event(), threading.Event()

    class Slow(Out):
        def __init__(self) -> None:
            self._flush_lock = threading.RLock()
            self._fid = None
            self._buffers = ["text"]

    def slow_flush(self: Slow) -> None:
        self._buffers = []
        taken.set()
        assert may_send.wait(10)
        sent.set()

    monkeypatch.setattr(OutStream, "_flush", slow_flush)
    monkeypatch.setattr(OutStream, "__del__", lambda self: None, raising=False)
    out = Slow()
    timer = threading.Thread(target=out._flush)
    timer.start()
    assert taken.wait(10)
    flushed = threading.Event()
    cell = threading.Thread(target=lambda: (out.flush(), flushed.set()))
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
