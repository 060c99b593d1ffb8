"""Code cannot slow its agent down or take its limits away, and manages its own processes as everywhere.

Also run as an ordinary user (see test_local_user).
"""

import json
import os
from pathlib import Path

from tests.integration import local_support as support

ATTACK = """
import ctypes, json, os, resource, subprocess
libc = ctypes.CDLL(None, use_errno=True)
done = []
def attempt(name, act):
    try:
        value = act()
    except OSError:
        return
    if value not in (-1, False):
        done.append(name)
def ran(*argv):
    return subprocess.run(argv, capture_output=True).returncode == 0
parameter = os.sched_param(0)
attempt("affinity", lambda: os.sched_setaffinity(1, [min(os.sched_getaffinity(0))]))
attempt("idle", lambda: os.sched_setscheduler(1, os.SCHED_IDLE, parameter))
attempt("batch", lambda: os.sched_setscheduler(1, os.SCHED_BATCH, parameter))
attempt("parameter", lambda: os.sched_setparam(1, parameter))
attempt("attributes", lambda: libc.syscall(SETATTR, 1, ctypes.create_string_buffer(48), 0))
for which, who in ((os.PRIO_PROCESS, 1), (os.PRIO_PGRP, 1), (os.PRIO_USER, 0), (os.PRIO_USER, os.getuid())):
    attempt(f"priority {which} {who}", lambda: os.setpriority(which, who, 19))
for which, who in ((1, 1), (2, 1), (3, 0), (3, os.getuid())):
    attempt(f"io priority {which} {who}", lambda: libc.syscall(IOPRIO, which, who, 3 << 13))
threads = [int(name) for name in os.listdir("/proc/1/task")]
for thread in threads:
    for name in ("NOFILE", "AS", "FSIZE", "NPROC", "CPU", "DATA", "STACK"):
        limit = getattr(resource, "RLIMIT_" + name)
        attempt(f"limit {name} of {thread}", lambda: resource.prlimit(thread, limit, (8, 8)))
for argv in (("renice", "-n", "19", "-p", "1"), ("renice", "-n", "19", "-u", str(os.getuid())),
             ("taskset", "-p", "1", "1"), ("chrt", "-i", "-p", "0", "1"), ("ionice", "-c3", "-p", "1"),
             ("prlimit", "--nofile=8", "--pid", "1")):
    attempt(" ".join(argv), lambda: ran(*argv))
print(json.dumps([done, len(threads)]))
"""

NUMBERS = {"SETATTR": (314, 274), "IOPRIO": (251, 30)}

OWN = """
import ctypes, json, multiprocessing, os, resource, signal, subprocess, sys, threading
from concurrent.futures import ProcessPoolExecutor
libc = ctypes.CDLL(None, use_errno=True)
libc.pthread_self.restype = ctypes.c_ulong
found = {}
def note(name, act):
    try:
        found[name] = act()
    except OSError as error:
        found[name] = str(error)
def ran(*argv):
    return subprocess.run(argv, capture_output=True, text=True).returncode
mask = os.sched_getaffinity(0)
one = {min(mask)}
def bits(cpus):
    return (ctypes.c_ulong * 16)(sum(1 << cpu for cpu in cpus))
def itself(thread, cpus):
    return libc.pthread_setaffinity_np(ctypes.c_ulong(thread), 128, bits(cpus))
note("pthread affinity", lambda: [itself(libc.pthread_self(), one), itself(libc.pthread_self(), mask)])
def in_thread():
    thread = threading.Thread(target=lambda: note("of a thread", lambda: itself(libc.pthread_self(), one)))
    thread.start()
    thread.join()
in_thread()
def schedule():
    policy, parameter = ctypes.c_int(), ctypes.create_string_buffer(8)
    libc.pthread_getschedparam(ctypes.c_ulong(libc.pthread_self()), ctypes.byref(policy), parameter)
    return libc.pthread_setschedparam(ctypes.c_ulong(libc.pthread_self()), policy, parameter)
note("pthread scheduling", schedule)
note("affinity by number", lambda: os.sched_setaffinity(os.getpid(), mask))
note("affinity by 0", lambda: os.sched_setaffinity(0, mask))
note("nice", lambda: -os.nice(0) + os.nice(1))
child = subprocess.Popen(["sleep", "100"])
pid = str(child.pid)
for name, argv in {
    "taskset": ("taskset", "-p", "1", pid), "renice": ("renice", "-n", "12", "-p", pid),
    "chrt": ("chrt", "-b", "-p", "0", pid), "ionice": ("ionice", "-c3", "-p", pid),
    "ulimit": ("bash", "-c", "ulimit -n 100 && ulimit -c 0 && test $(ulimit -n) = 100"),
    "nice program": ("nice", "-n", "5", "true"), "reading limits": ("prlimit", "--pid", pid),
}.items():
    note(name, lambda: ran(*argv))
note("nice of the child", lambda: os.getpriority(os.PRIO_PROCESS, child.pid))
note("limits of init", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE)[0] > 8)
def own_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
note("own limit", own_limit)
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    note("process pool", lambda: sum(pool.map(abs, range(-5, 5))))
child.kill()
print(json.dumps(found))
"""

WORKS = {
    "pthread affinity": [0, 0],
    "of a thread": 0,
    "pthread scheduling": 0,
    "affinity by number": None,
    "affinity by 0": None,
    "nice": 1,
    "taskset": 0,
    "renice": 0,
    "chrt": 0,
    "ionice": 0,
    "ulimit": 0,
    "nice program": 0,
    "reading limits": 0,
    "nice of the child": 12,
    "limits of init": True,
    "own limit": 256,
    "process pool": 25,
}


def place(pid: int) -> list[object]:
    """How the host schedules a process, and what its limits are."""
    return [
        os.getpriority(os.PRIO_PROCESS, pid),
        os.sched_getscheduler(pid),
        os.sched_getaffinity(pid),
        Path(f"/proc/{pid}/limits").read_text(),
    ]


async def test_code_cannot_slow_its_agent_down() -> None:
    column = 0 if os.uname().machine == "x86_64" else 1
    code = ATTACK
    for name, numbers in NUMBERS.items():
        code = code.replace(name, str(numbers[column]))
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        first = int((support.entry_of(backend, "sb-a").folder / "first").read_text().split()[0])
        before = place(first)
        done, threads = json.loads(await support.run(backend, "sb-a", code))
        assert done == []
        assert threads > 0
        assert place(first) == before


async def test_code_manages_its_own_processes() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        found = json.loads(await support.run(backend, "sb-a", OWN))
        assert found == WORKS


async def test_signals_to_everybody_leave_the_sandbox_alive() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        for number in (9, 15, 19):
            await support.call(backend, "sb-a", "run", code=f"import os; os.kill(-1, {number})")
        assert await support.run(backend, "sb-a", "print('here')") == "here"
