"""The local backend's pure decisions: pools, limits, the filter, the root, an end's word."""

import ctypes
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.backends.base import Resources, SandboxSpec, WarmPoolSpec
from llmsafespace_gateway.backends.local import limits
from llmsafespace_gateway.backends.local.isolation import command, root, seccomp
from llmsafespace_gateway.backends.local.isolation.syscalls import ALLOWED, CHECKED, UNCHARGED
from llmsafespace_gateway.backends.local.keeper import keeping, processes
from llmsafespace_gateway.backends.local.pool import (
    Observed,
    Warm,
    backoff,
    cold_reason,
    misfit,
    plan,
    wanted,
)

GIB = 1024**3


def pool(**changes: Any) -> WarmPoolSpec:
    wish: dict[str, Any] = {"name": "p", "runtime": "python:3.11", "min_size": 2}
    return WarmPoolSpec(**(wish | changes))


# -- pools -------------------------------------------------------------------------------------------


def test_an_empty_pool_is_filled() -> None:
    assert plan(Observed(spec=pool())).start == 2


def test_what_is_on_its_way_counts() -> None:
    assert plan(Observed(spec=pool(), starting=1, warm=(Warm("a", 0),))).start == 0


def test_never_over_max_size() -> None:
    for present in range(4):
        warm = tuple(Warm(str(n), 0) for n in range(present))
        actions = plan(Observed(spec=pool(min_size=5, max_size=3), warm=warm))
        assert present + actions.start - len(actions.end) <= 3


def test_surplus_goes_oldest_first() -> None:
    actions = plan(Observed(spec=pool(), warm=(Warm("new", 1), Warm("old", 9), Warm("mid", 5))))
    assert (actions.end, actions.start) == (("old",), 0)


def test_an_aged_one_stays_until_it_is_replaced() -> None:
    spec = pool(min_size=1, ttl=100)
    first = plan(Observed(spec=spec, warm=(Warm("aged", 100),)))
    assert (first.start, first.end) == (1, ())
    then = plan(Observed(spec=spec, warm=(Warm("aged", 101), Warm("fresh", 1))))
    assert (then.start, then.end) == (0, ("aged",))


def test_an_aged_one_makes_room_at_max_size() -> None:
    actions = plan(Observed(spec=pool(min_size=1, max_size=1, ttl=100), warm=(Warm("aged", 100),)))
    assert (actions.start, actions.end) == (1, ("aged",))


def test_an_old_make_ends_at_once() -> None:
    actions = plan(Observed(spec=pool(min_size=1), warm=(Warm("old", 1, current=False),)))
    assert (actions.start, actions.end) == (1, ("old",))


def test_failures_are_waited_out() -> None:
    actions = plan(Observed(spec=pool(), now=10.0, retry_at=12.0))
    assert (actions.start, actions.look_again_at) == (0, 12.0)
    assert backoff(0) == 0.0
    assert backoff(1) < backoff(3) <= backoff(50) == 60.0


def test_autoscaling_keeps_utilization_and_shrinks_late() -> None:
    spec = pool(min_size=1, auto_scaling=True, target_utilization=50, scale_down_delay=300)
    assert wanted(spec, assigned=6) == 6
    assert wanted(pool(auto_scaling=True, target_utilization=80), assigned=8) == 2
    assert wanted(pool(auto_scaling=True, target_utilization=50, max_size=3), assigned=8) == 3
    warm = tuple(Warm(str(n), n) for n in range(3))
    early = plan(Observed(spec=spec, warm=warm, now=1000.0))
    assert (early.end, early.surplus_since, early.look_again_at) == ((), 1000.0, 1300.0)
    late = plan(Observed(spec=spec, warm=warm, now=1300.0, surplus_since=1000.0))
    assert len(late.end) == 2


def test_looks_again_when_the_first_gets_too_old() -> None:
    spec = pool(min_size=1, ttl=100)
    assert plan(Observed(spec=spec, warm=(Warm("a", 40),), now=1000.0)).look_again_at == 1060.0


def test_misfits_and_reasons() -> None:
    spec = SandboxSpec(sandbox_id="s", runtime="python:3.11", owner="o", tenant="t")
    assert misfit(spec, "python:3.11", pool(), "python:3.11") is None
    assert cold_reason(spec, [None]) is None
    assert cold_reason(spec, []) == "there is no warm pool"
    large = SandboxSpec(
        sandbox_id="s", runtime="python:3.11", owner="o", tenant="t", resources=Resources(cpu=2.0)
    )
    reasons = [misfit(large, "python:3.11", each, "python:3.11") for each in (pool(tenant="x"), pool())]
    assert "more resources" in (cold_reason(large, reasons) or "")


CODE = {"preload_scripts": (("x", "import builtins"),)}


@pytest.mark.parametrize("code", [CODE, {"preload_packages": ("evil",)}], ids=["script", "package"])
@pytest.mark.parametrize(
    ("whose", "served"),
    [
        ({"tenant": None}, True),
        ({"tenant": "t", "owner": "o"}, False),
        ({"tenant": "t", "owner": "p"}, False),
        ({"tenant": "t", "owner": "p", "published": True}, True),
        ({"tenant": "default", "owner": "p", "published": True}, True),
        ({"tenant": "default", "owner": "p"}, False),
        ({"tenant": "u", "owner": "p", "published": True}, False),
    ],
    ids=["configured", "own", "colleague", "published", "operator", "operator private", "other tenant"],
)
def test_whose_code_a_plain_request_gets(code: dict[str, Any], whose: dict[str, Any], served: bool) -> None:
    """Nobody's but the operator's, and what an admin of its tenant published: not even its owner's own."""
    plain = SandboxSpec(sandbox_id="s", runtime="python:3.11", owner="o", tenant="t")
    reason = misfit(plain, "python:3.11", pool(**code, **whose), "python:3.11")
    assert (reason is None) == served, reason
    if whose.get("tenant") == "t" and not served:
        assert "warmPool" in (cold_reason(plain, [reason]) or "")
    if whose.get("tenant") == "u":
        assert cold_reason(plain, [reason]) == "there is no warm pool"


def test_a_pool_without_code_serves_its_whole_tenant() -> None:
    plain = SandboxSpec(sandbox_id="s", runtime="python:3.11", owner="o", tenant="t")
    assert misfit(plain, "python:3.11", pool(tenant="t", owner="p"), "python:3.11") is None
    assert misfit(plain, "python:3.11", pool(tenant="u", owner="p"), "python:3.11") is not None


# -- limits ------------------------------------------------------------------------------------------

MOUNTS = """\
30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 /outer /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
OWN = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:pids:/outer/c\n0::/u\n"


def test_own_cgroups_are_found() -> None:
    own, mounts = limits.parse_own(OWN), limits.parse_mounts(MOUNTS)
    found = {name: limits.own_folder(name, own, mounts) for name in ("memory", "cpu", "pids", "", "io")}
    assert found == {
        "memory": "/sys/fs/cgroup/memory/a/b",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "pids": "/sys/fs/cgroup/pids/c",
        "": "/sys/fs/cgroup/unified/u",
        "io": None,
    }
    assert limits.own_folder("pids", {"pids": "/elsewhere"}, mounts) == "/sys/fs/cgroup/pids"


def test_version_2_cgroup() -> None:
    hierarchy = limits.Hierarchy(2, dict.fromkeys(("memory", "pids", "cpu"), "/cg"))
    (group,) = limits.cgroups(hierarchy, "x", Resources(cpu=0.5, memory=GIB, storage=GIB), warm=True)
    files = {name: value for name, value, _ in group["files"]}
    assert group["path"] == "/cg/x"
    assert files["cpu.max"] == "200000 100000"  # until it is claimed
    assert int(files["memory.max"]) == 2 * GIB + limits.SLACK
    assert files["pids.max"] == str(limits.PROCESSES)
    assert limits.oom_file(hierarchy, "x") == "/cg/x/memory.events"


def test_a_claimed_sandbox_gets_its_own_share_of_the_processor_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    limits.settle_cpu(limits.Hierarchy(2, {"cpu": str(tmp_path)}), "x", 0.5, bound=False)
    assert (tmp_path / "x" / "cpu.max").read_text() == "200000 100000"  # a bind is not its owner's
    limits.settle_cpu(limits.Hierarchy(2, {"cpu": str(tmp_path)}), "x", 0.5, bound=True)
    assert (tmp_path / "x" / "cpu.max").read_text() == "50000 100000"
    assert (tmp_path / "x" / "cpu.weight").read_text() == "50"
    limits.settle_cpu(limits.Hierarchy(1, {"cpu": str(tmp_path)}), "x", 0.5, bound=True)
    assert (tmp_path / "x" / "cpu.cfs_quota_us").read_text() == "50000"
    limits.settle_cpu(limits.Hierarchy(1, {"cpu": str(tmp_path)}), "gone", 0.5, bound=True)


def test_version_1_cgroups_that_share_a_folder() -> None:
    hierarchy = limits.Hierarchy(1, {"memory": "/m", "pids": "/m", "cpu": "/c"})
    groups = {
        group["path"]: [name for name, _, _ in group["files"]]
        for group in limits.cgroups(hierarchy, "x", Resources(), warm=False)
    }
    assert set(groups) == {"/m/x", "/c/x"}
    assert {"memory.limit_in_bytes", "pids.max"} <= set(groups["/m/x"])


def test_version_2_controllers_are_handed_on(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    limits._enable(tmp_path)
    assert (tmp_path / "gateway" / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_without_cgroups_the_parts_are_at_most_the_storage() -> None:
    room = root.sizes(GIB, GIB, charged=False)
    assert room.workspace + room.home + room.tmp + room.shm + room.run <= GIB
    assert root.sizes(GIB, GIB, charged=True).workspace == GIB


# -- the keeper's verdict ------------------------------------------------------------------------------

WORDS = {0: "terminated", 10: "expired", 11: "oom"}


@pytest.mark.parametrize(
    ("asked", "status", "ooms", "end"),
    [
        ("expired", -9, 3, "expired"),
        ("", None, 0, "terminated"),
        ("", 10, 0, "expired"),
        ("", 11, 0, "oom"),
        ("", 137, 1, "oom"),
        ("", 137, 0, "lost"),
        ("", 1, 1, "lost"),
        ("", -9, 0, "lost"),
    ],
)
def test_verdict(asked: str, status: int | None, ooms: int, end: str) -> None:
    assert keeping.verdict(asked, status, ooms, WORDS, "")[0] == end


def test_oom_kills_of_both_versions() -> None:
    assert processes.oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n") == 3
    assert processes.oom_kills("low 0\nmax 7\noom 2\noom_kill 1\n") == 1
    assert processes.oom_kills("") == 0


# -- root and command line -----------------------------------------------------------------------------


def test_os_base_takes_links_as_links_and_nothing_of_people(tmp_path: Path) -> None:
    for name in ("usr/bin", "usr/lib", "home/alice", "root", "var/lib", "opt/thing", "usr/local/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/local/bin/tool").write_text("")
    steps = root.os_base(tmp_path)
    binds = {step.target for step in steps if isinstance(step, root.Bind)}
    assert binds == {"/usr/bin", "/usr/lib"}
    assert root.Link("usr/bin", "/bin") in steps


def test_staging_hides_every_source() -> None:
    steps: list[root.Step] = [root.Bind("/root/x", "/a"), root.Bind("/root/x", "/b"), root.Tmpfs("/c", 4096)]
    moved, staged, bwrap = command.stage(steps, "/root/bwrap")
    line = command.command(bwrap, moved, {"A": "b"}, "/", ["/bin/true"])
    assert not any("/root" in word for word in line)
    assert [each.source for each in staged] == ["/root/x", "/root/bwrap"]
    assert line[-2:] == ["--", "/bin/true"]
    assert {"--unshare-all", "--disable-userns", "--die-with-parent", "--clearenv"} <= set(line)


# -- the filter ----------------------------------------------------------------------------------------

ALLOW, KILL = 0x7FFF0000, 0x80000000


def evaluate(
    machine: str,
    number: int,
    arguments: tuple[int, ...] = (),
    arch: int | None = None,
    charged: bool = True,
) -> int:
    """What the kernel's classic BPF machine answers (see linux/filter.h)."""
    words = [number & 0xFFFFFFFF, seccomp.ARCHITECTURES[machine][1] if arch is None else arch, 0, 0]
    for argument in (*arguments, *([0] * (6 - len(arguments)))):
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    code = seccomp.program(machine, charged)
    accumulator, at = 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x20:
            accumulator = words[k // 4]
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x06:
            return k
        else:
            test = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }
            at += yes if test[operation] else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_allows_exactly_the_table(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]
    allowed = {numbers[column] for numbers in ALLOWED.values()} - {None}
    checked = {numbers[column] for numbers in CHECKED.values()}
    for number in range(463):
        if number in checked:
            continue
        wanted = ALLOW if number in allowed else 0x50000 | errno.EPERM
        assert evaluate(machine, number) == wanted, number
    assert evaluate(machine, 463) == 0x50000 | errno.ENOSYS
    assert evaluate(machine, 0x40000001) == KILL
    assert evaluate(machine, 0, arch=0x40000003) == KILL


@pytest.mark.parametrize("charged", [True, False])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_refuses_memory_that_nobody_could_count(machine: str, charged: bool) -> None:
    """Huge pages always; what hides memory only where no cgroup charges it."""
    column = seccomp.ARCHITECTURES[machine][0]
    numbers = CHECKED | UNCHARGED

    def call(name: str, *arguments: int) -> int:
        answer = evaluate(machine, numbers[name][column], arguments, charged=charged)
        return 0 if answer == ALLOW else answer - 0x50000 or -1  # -1: it succeeds and does nothing

    assert call("mmap", 0, 2**40, 3, 0x22) == 0
    assert call("mmap", 0, 2**40, 3, 0x21) == 0
    assert call("mmap", 0, 4096, 3, 0x40022) == errno.ENOMEM
    assert call("shmget", 0, 4096, 0o1600) == 0
    assert call("shmget", 0, 4096, 0o5600) == errno.ENOMEM
    assert call("memfd_create", 0, 1) == (0 if charged else errno.ENOSYS)
    assert call("memfd_create", 0, 5) == (errno.EINVAL if charged else errno.ENOSYS)
    assert call("vmsplice", 1) == (0 if charged else errno.ENOSYS)
    assert call("fcntl", 3, 1031, 2**20) == (0 if charged else errno.EPERM)
    assert call("fcntl", 3, 1032) == 0
    assert call("setsockopt", 3, socket.SOL_SOCKET, socket.SO_SNDBUF) == (0 if charged else -1)
    assert call("setsockopt", 3, socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
    assert call("setsockopt", 3, socket.IPPROTO_TCP, socket.SO_SNDBUF) == 0


# Flags of clone: what C libraries and Go ask for. 0x11 is SIGCHLD.
FORK = 0x1200011  # CHILD_SETTID, CHILD_CLEARTID
VFORK, SPAWN = 0x4111, 0x4100  # VM, VFORK
THREAD = 0x3D0F00  # as Go's, and SETTLS, PARENT_SETTID, CHILD_CLEARTID
GO_THREAD = 0x50F00  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM


@pytest.mark.parametrize("charged", [True, False])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_refuses_descriptors_that_nobody_could_count(machine: str, charged: bool) -> None:
    """A thread with descriptors of its own; whatever thread libraries, fork and spawn ask for is allowed."""
    column = seccomp.ARCHITECTURES[machine][0]
    numbers = ALLOWED | CHECKED | UNCHARGED

    def call(name: str, *arguments: int) -> int:
        number = numbers[name][column]
        assert number is not None
        answer = evaluate(machine, number, arguments, charged=charged)
        return 0 if answer == ALLOW else answer - 0x50000

    assert [call("clone", flags) for flags in (FORK, VFORK, SPAWN, THREAD, GO_THREAD)] == [0] * 5
    files, new_user = 0x400, 0x10000000
    for flags in (THREAD & ~files, GO_THREAD & ~files):
        assert call("clone", flags) == (0 if charged else errno.EPERM)
    assert [call("clone", flags | new_user) for flags in (FORK, THREAD)] == [errno.EPERM] * 2
    cloexec, unshare = 4, 2
    assert [call("close_range", 3, 9, flags) for flags in (0, cloexec)] == [0, 0]
    for flags in (unshare, unshare | cloexec):
        assert call("close_range", 3, 9, flags) == (0 if charged else errno.EINVAL)


UNIFIED = {"": ("/sys/fs/cgroup", "/")}


@pytest.mark.parametrize(
    ("uid", "mounts", "busctl", "asks"),
    [
        (1000, UNIFIED, "/usr/bin/busctl", True),
        (0, UNIFIED, "/usr/bin/busctl", False),
        (1000, UNIFIED, None, False),
        (1000, {}, "/usr/bin/busctl", False),
        (1000, UNIFIED | {"memory": ("/sys/fs/cgroup/memory", "/")}, "/usr/bin/busctl", False),
    ],
    ids=["user with version 2", "root", "no systemd", "no cgroups", "version 1"],
)
def test_an_ordinary_user_asks_the_service_manager_for_a_cgroup(
    uid: int, mounts: dict[str, tuple[str, str]], busctl: str | None, asks: bool
) -> None:
    asked = limits.delegation(uid, 4321, mounts, busctl)
    assert bool(asked) == asks
    if asks:
        assert asked[:3] == ["/usr/bin/busctl", "--user", "call"]
        assert asked[asked.index("PIDs") + 1 : asked.index("PIDs") + 4] == ["au", "1", "4321"]
        assert asked[asked.index("Delegate") + 1 :][:2] == ["b", "true"]


@pytest.mark.parametrize(
    "answer", ["exit 1", "exit 0", "exec sleep 60"], ids=["refuses", "does nothing", "hangs"]
)
def test_a_service_manager_that_does_not_move_us_leaves_the_watchdog(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "busctl"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(limits, "_ASK", 0.2)
    assert not limits.delegate(1000, UNIFIED)
    resources = Resources(cpu=1.0, memory=2**28, storage=2**26)
    assert limits.described(resources, limits.NONE)["memory"]["by"] == "seccomp, rlimit and watchdog"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_keeps_the_agent_from_being_slowed_down(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]

    def allows(name: str, *arguments: int) -> bool:
        return evaluate(machine, CHECKED[name][column], arguments) == ALLOW

    top = 1 << 32  # what a kernel that looks at an int does not see
    for name in ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
        assert [allows(name, pid, 8, 4096) for pid in (0, 2, 77, 1, top + 1)] == [True] * 3 + [False] * 2
    for name, process, group, user in (("setpriority", 0, 1, 2), ("ioprio_set", 1, 2, 3)):
        for which in (process, group):
            assert [allows(name, which, who, 19) for who in (0, 77, 1, top + 1)] == [True] * 2 + [False] * 2
        assert not any(allows(name, which, who, 19) for which in (user, 7, top + user) for who in (0, 1000))
    new, high = 0x7FFC1234, 0x7FFC00000000
    assert all(allows("prlimit64", pid, 7, 0, new) for pid in (0, 1, 77))
    assert all(allows("prlimit64", 0, 7, pointer, 0) for pointer in (new, high))
    assert not any(allows("prlimit64", pid, 7, pointer, 0) for pid in (1, 77) for pointer in (new, high))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_looks_at_arguments(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]

    def call(name: str, *arguments: int) -> int:
        answer = evaluate(machine, CHECKED[name][column], arguments)
        return 0 if answer == ALLOW else answer & 0xFFFF

    assert call("clone", 0x01200011) == 0
    assert call("clone", 0x003D0F00) == 0  # a thread
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert call("clone", flag | 17) == errno.EPERM
    assert call("clone3") == errno.ENOSYS
    assert call("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0) == 0
    assert call("socket", socket.AF_INET, socket.SOCK_STREAM, 6) == 0
    assert call("socket", socket.AF_INET6, socket.SOCK_DGRAM, 17) == 0
    assert call("socket", socket.AF_INET, socket.SOCK_STREAM, 132) == errno.EPERM  # SCTP
    for family in (16, 17, 38, 40, 44):
        assert call("socket", family, 3, 0) == errno.EPERM
    assert call("socketpair", socket.AF_INET) == errno.EPERM
    assert call("ioctl", 1, 0x5401) == 0
    assert call("ioctl", 1, 0x5412) == call("ioctl", 1, 0x8912) == call("ioctl", 1, 0x894C) == errno.EPERM
    assert call("ioctl", 1, 0xFFFFFFFF_00005412) == errno.EPERM  # the kernel looks at the low half only
    assert call("personality", 0xFFFFFFFF) == 0
    assert call("personality", 0x0400000) == errno.EPERM


def test_filter_is_the_kernels_array() -> None:
    class Instruction(ctypes.Structure):
        _fields_ = [
            ("code", ctypes.c_uint16),
            ("jt", ctypes.c_uint8),
            ("jf", ctypes.c_uint8),
            ("k", ctypes.c_uint32),
        ]

    code = seccomp.program("x86_64")
    encoded = seccomp.encode(code)
    array = (Instruction * len(code)).from_buffer_copy(encoded)
    assert [(each.code, each.jt, each.jf, each.k) for each in array] == code
    assert len(code) <= 4096
