"""What is counted of a sandbox's memory where no cgroup charges it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from llmsafespace_agent.inside import memory

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
    found = memory._descriptors(pid)
    monkeypatch.undo()
    assert found >= 2 * pipes
    assert found <= max(256, 4 * pipes)  # an ordinary program stays far below what is free
    assert len(listdir(f"/proc/{pid}/fd")) >= 2 * pipes
    assert memory._descriptors(2**22 + 1) == 0
