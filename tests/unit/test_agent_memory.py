"""What is counted of a sandbox's memory where no cgroup charges it, and what is done when it is too much."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_agent.inside import memory, processes
from llmsafespace_agent.inside.counting import Counter
from llmsafespace_agent.inside.own import OwnProcesses
from llmsafespace_agent.server import watchdog
from llmsafespace_agent.server.watchdog import Suspect, Watchdog
from llmsafespace_protocol.configuration import SandboxLimits

MIB = 2**20

# -- sockets ------------------------------------------------------------------------------------------

SOCKSTAT = b"""sockets: used 56
TCP: inuse 12 orphan 0 tw 2 alloc 290 mem 0
UDP: inuse 1 mem 0
UDPLITE: inuse 0
RAW: inuse 7
FRAG: inuse 0 memory 0
TCP6: inuse 3
UDP6: inuse 2
RAW6: inuse 0
"""
TABLE = b"""  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:ADEB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 64312 1 0
   1: 0100007F:ADEB 0100007F:C350 01 00000010:00100000 00:00000000 00000000  1000        0 64313 1 0
   2: 0100007F:ADEB 0100007F:C351 01 00000000:00000020 00:00000000 00000000     0        0 0 1 0
   3: 0100007F:ADEB 0100007F:C352 06 00000000:00000000 03:00000DAC 00000000     0        0 0 3 0
"""


def test_what_the_kernel_says_of_sockets() -> None:
    assert memory.sockets_in_use(SOCKSTAT) == (56, 18)
    assert memory.sockets_in_use(b"") == (0, 0)
    assert memory.socket_queues(TABLE) == (0x100030, 2)  # the others belong to nobody's descriptor
    assert memory.socket_queues(b"") == (0, 0)


def test_few_connections_may_hold_much() -> None:
    """Less than a process has otherwise, but full."""
    server = socket.create_server(("127.0.0.1", 0))
    kept, sent = [server], 0
    try:
        for _ in range(6):
            client = socket.create_connection(server.getsockname())
            other, _ = server.accept()
            kept += [client, other]
            client.setblocking(False)
            try:
                while sent < 64 * MIB:
                    sent += client.send(bytes(65536))
            except BlockingIOError:
                pass
        assert sent > MIB
        assert memory._sockets() >= sent
    finally:
        for one in kept:
            one.close()


# -- descriptors --------------------------------------------------------------------------------------

PIPES = """
import os, sys
kept = [os.pipe() for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=[0, 400])
def process(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A process and the number of its pipes."""
    command = [sys.executable, "-c", PIPES, str(request.param)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        yield started.pid, request.param
        started.communicate()


@pytest.mark.parametrize("kernel", ["counts", "lists", "refuses"])
def test_descriptors_count_also_where_nobody_may_look(
    kernel: str, process: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, pipes = process
    stat, listdir = os.stat, os.listdir

    def no_size(path: Any, **options: Any) -> os.stat_result:
        found = stat(path, **options)
        return os.stat_result([0 if place == 6 else value for place, value in enumerate(found[:10])])

    def refused(path: Any) -> list[str]:
        raise PermissionError(path)

    if kernel != "counts":
        monkeypatch.setattr(os, "stat", no_size)
    if kernel == "refuses":
        monkeypatch.setattr(os, "listdir", refused)
    found = memory._descriptors(f"/proc/{pid}")
    monkeypatch.undo()
    assert found >= 2 * pipes
    assert found <= max(256, 4 * pipes)  # an ordinary program stays far below what is free
    assert len(listdir(f"/proc/{pid}/fd")) >= 2 * pipes
    assert memory._descriptors(f"/proc/{2**22 + 1}") == 0


# -- processes without their main thread --------------------------------------------------------------

HEADLESS = """
import ctypes, mmap, os, sys, threading, time
libc = ctypes.CDLL(None)
private, shared, changing = bytearray(48 << 20), mmap.mmap(-1, 32 << 20), sys.argv[1] == "changing"
shared[:] = bytes(len(shared))
pipes = [os.pipe() for _ in range(400)]
def go_on():
    if changing:
        time.sleep(0.002)
        threading.Thread(target=go_on).start()
    else:
        time.sleep(60)
threading.Thread(target=go_on).start()
time.sleep(0.05)
os.write(1, b"ready\\n")
libc.pthread_exit(None)
"""


@pytest.mark.parametrize("threads", ["one", "changing"])
def test_a_process_counts_after_its_main_thread_has_ended(threads: str) -> None:
    """The others hold what it held; /proc/PID shows neither memory nor descriptors any more."""
    with subprocess.Popen([sys.executable, "-c", HEADLESS, threads], stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"
            time.sleep(0.2)
            pid, ledger = started.pid, memory.Ledger()
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            assert processes.anonymous_memory(pid) >= 48 * MIB
            for _ in range(50):
                held = ledger.by_process()[pid]
                assert 80 * MIB <= held < 256 * MIB
                assert memory.exact_total({pid: held}) >= 80 * MIB
            assert memory._descriptors(processes.folder(pid)) >= 800 or threads == "changing"
        finally:
            started.kill()


# -- the watchdog -------------------------------------------------------------------------------------

LIMIT = 256 * MIB
A, B, C = 2**22 + 1, 2**22 + 2, 2**22 + 3  # no processes


class Sandbox:
    """A watchdog whose ledger says what the test wants, and what it did."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.suspects: list[int] = []
        self.killed: list[int] = []
        self.ended = 0
        self.now = 100.0
        limits = SandboxLimits(memory_bytes=LIMIT)
        self._watchdog = Watchdog(limits, OwnProcesses(), self._suspects, self._give_up)
        self._counter = Counter(LIMIT, self)  # type: ignore[arg-type]

    def _suspects(self) -> list[Suspect]:
        return [Suspect(pid, lambda pid=pid: self.killed.append(pid)) for pid in self.suspects]  # type: ignore[misc]

    def _give_up(self, reason: str) -> None:
        self.ended += 1

    def by_process(self) -> dict[int, int]:
        return dict(self.held)

    def shared_and_kernels(self) -> int:
        return 0

    def polls(self, count: int, growth: int = 0) -> None:
        for _ in range(count):
            held = self._counter.count(self.suspects)
            self._watchdog.judge(self._counter.last, held, self.now)
            self.now += 0.015
            self.held = {pid: size + growth for pid, size in self.held.items()}


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(memory, "exact_total", lambda held: sum(held.values()))
    return Sandbox()


def test_a_killed_kernel_has_time_to_die(sandbox: Sandbox) -> None:
    sandbox.suspects, sandbox.held = [A, B], {A: 300 * MIB, B: 10 * MIB}
    sandbox.polls(100)
    assert set(sandbox.killed) == {A}
    assert not sandbox.ended
    sandbox.suspects = [B]  # it is dead, its children are about to be
    sandbox.polls(20)
    assert not sandbox.ended
    sandbox.held = {B: 10 * MIB}
    sandbox.polls(100)
    assert not sandbox.ended
    sandbox.held = {B: 300 * MIB}
    sandbox.polls(100)
    assert not sandbox.ended


def test_one_that_never_dies_ends_the_sandbox(sandbox: Sandbox) -> None:
    sandbox.suspects, sandbox.held = [A], {A: 300 * MIB}
    sandbox.polls(int((watchdog._DYING + 1) / 0.015))
    assert sandbox.ended


def test_nothing_to_kill_ends_the_sandbox_soon(sandbox: Sandbox) -> None:
    sandbox.held = {C: 300 * MIB}
    sandbox.polls(19)
    assert not sandbox.ended
    sandbox.polls(1)
    assert sandbox.ended


@pytest.mark.parametrize("gone", [True, False], ids=["the kernel is gone", "the kernel is still there"])
def test_who_takes_more_meanwhile_ends_the_sandbox_soon(gone: bool, sandbox: Sandbox) -> None:
    sandbox.suspects, sandbox.held = [A], {A: 10 * MIB, C: 290 * MIB}
    sandbox.polls(1)
    if gone:
        sandbox.suspects, sandbox.held = [], {C: 290 * MIB}
    sandbox.polls(25, growth=60 * MIB)
    assert sandbox.killed[0] == A
    assert sandbox.ended


def test_time_over_the_limit_is_not_added_up(sandbox: Sandbox) -> None:
    """Also where what processes share makes it seem too much all the time."""
    for _ in range(5):
        sandbox.held = {C: 300 * MIB}
        sandbox.polls(10)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "exact_total", lambda held: LIMIT // 2)
            patch.setattr(memory, "least_total", lambda held: LIMIT // 2)
            sandbox.polls(1)
    assert not sandbox.ended


# -- what processes share -----------------------------------------------------------------------------

TABLES = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = 64 << 30
at = libc.mmap(None, ctypes.c_size_t(size), 1, 0x4022, -1, ctypes.c_long(0))
for offset in range(0, size, 1 << 21):
    ctypes.c_char.from_address(at + offset).value
print("ready", flush=True)
sys.stdin.read()
"""
FORKS = """
import os, sys
block = bytearray(32 << 20)
for _ in range(3):
    if os.fork() == 0:
        break
os.write(1, b"%d\\n" % os.getpid())
sys.stdin.read()
"""


def test_page_tables_are_certain_without_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact count reads them all, and code takes twice its limit meanwhile."""
    killed: list[int] = []
    read: list[int] = []

    def exact(pid: int) -> int:
        read.append(pid)
        return 0

    monkeypatch.setattr(processes, "exact_memory", exact)
    with subprocess.Popen(
        [sys.executable, "-c", TABLES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        held = {started.pid: sum(memory._status(f"/proc/{started.pid}"))}
        assert memory.least_total(held) >= 128 * MIB
        watching = Sandbox()
        watching.by_process = lambda: held  # type: ignore[method-assign]
        suspects = [Suspect(started.pid, lambda: killed.append(started.pid))]
        dog = Watchdog(SandboxLimits(memory_bytes=64 * MIB), OwnProcesses(), lambda: suspects)
        counter = Counter(64 * MIB, watching)  # type: ignore[arg-type]
        counted = counter.count([started.pid])
        dog.judge(counter.last, counted, 0.0)
        started.communicate()
    assert killed == [started.pid]
    assert read == []


def test_pages_that_forks_share_are_not_certain() -> None:
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pids = [int(started.stdout.readline()) for _ in range(4)]
        held = {pid: sum(memory._status(f"/proc/{pid}")) for pid in pids}
        least, exact = memory.least_total(held), memory.exact_total(held)
        started.communicate()
    assert sum(held.values()) >= 4 * 32 * MIB
    assert 32 * MIB <= least <= exact < 64 * MIB
