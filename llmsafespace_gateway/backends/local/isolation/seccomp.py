"""The seccomp filter of a sandbox, as the classic BPF program that bubblewrap loads.

An allow-list: a call that is not on it fails with EPERM, one that is newer than our table with ENOSYS,
and a call of a foreign architecture (x32 included) kills the process. See seccomp(2) and linux/filter.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from llmsafespace_gateway.backends.local.isolation.syscalls import ALLOWED, CHECKED, NEWEST, UNCHARGED

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH
_X32 = 0x40000000

_LOAD, _JEQ, _JGT, _JGE, _JSET, _RET, _AND = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06, 0x54
_NR, _ARCH = 0, 4  # offsets in struct seccomp_data

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NAMESPACES = 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000
_CLOSE_RANGE_UNSHARE = 2
_TERMINAL_IOCTLS = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
_MAP_HUGETLB, _SHM_HUGETLB, _MFD_HUGETLB = 0x40000, 0o4000, 4
_F_SETPIPE_SZ = 1031
_SOCKET_IOCTLS = 0x8900  # 0x89xx: interfaces, routes, a socket's network namespace

_AGENT = 1  # its process in the sandbox's pid namespace, and its process group
_PRIO_PROCESS, _PRIO_PGRP = 0, 1  # of setpriority; PRIO_USER would be everybody's, the agent's too
_IOPRIO_PROCESS, _IOPRIO_PGRP = 1, 2

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def _refuse(number: int) -> Instruction:
    return (_RET, 0, 0, _ERRNO | number)


_PERMIT: Instruction = (_RET, 0, 0, _ALLOW)


def _argument(index: int, high: bool = False) -> Instruction:
    """Load the low half of an argument (both architectures are little-endian), or its high half."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _one_of(index: int, values: Iterable[int], otherwise: int) -> list[Instruction]:
    program = [_argument(index)]
    for value in values:
        program += [(_JEQ, 0, 1, value), _PERMIT]
    return [*program, _refuse(otherwise)]


def _check_clone(*more: Instruction) -> list[Instruction]:
    """No namespaces, and what `more` refuses of the flags, which are loaded."""
    return [_argument(0), (_JSET, 0, 1, _NAMESPACES), _refuse(errno.EPERM), *more, _PERMIT]


def _check_clone_uncharged() -> list[Instruction]:
    """As `_check_clone`, and a thread shares the descriptors of its process, as all thread libraries have it.

    The agent counts descriptors in /proc/PID/fd, which are those of the process' main thread.
    """
    return _check_clone((_JSET, 0, 2, _CLONE_THREAD), (_JSET, 1, 0, _CLONE_FILES), _refuse(errno.EPERM))


def _check_socket() -> list[Instruction]:
    """AF_UNIX as it pleases, AF_INET and AF_INET6 for TCP and UDP; nothing else has a use here."""
    internet = _one_of(2, (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP), errno.EPERM)
    return [
        _argument(0),
        (_JEQ, 0, 1, socket.AF_UNIX),
        _PERMIT,
        (_JEQ, 2, 0, socket.AF_INET),
        (_JEQ, 1, 0, socket.AF_INET6),
        _refuse(errno.EPERM),
        *internet,
    ]


def _check_ioctl() -> list[Instruction]:
    program = [_argument(1)]
    for value in _TERMINAL_IOCTLS:
        program += [(_JEQ, 0, 1, value), _refuse(errno.EPERM)]
    return [
        *program,
        (_AND, 0, 0, 0xFFFFFF00),
        (_JEQ, 0, 1, _SOCKET_IOCTLS),
        _refuse(errno.EPERM),
        _PERMIT,
    ]


def _check_process(index: int) -> list[Instruction]:
    """Any process or thread but number 1, the agent's main thread. 0 means the caller, which is never that.

    C libraries pass the number of a thread, not 0: "0 only" would break programs that mean themselves.
    So the agent's further threads (ZMQ's, its executor's) are not protected, as they have other numbers: code
    can make them slow. Limits of time hold all the same, by the clock outside (see keeper/clock.py).
    """
    return [_argument(index), (_JEQ, 0, 1, _AGENT), _refuse(errno.EPERM), _PERMIT]


def _check_priority(process: int, group: int) -> list[Instruction]:
    """Of one process or one process group, and not the agent's."""
    return [
        _argument(0),
        (_JEQ, 2, 0, process),
        (_JEQ, 1, 0, group),
        _refuse(errno.EPERM),
        *_check_process(1),
    ]


def _check_prlimit() -> list[Instruction]:
    """Anybody's limits may be read, and only its own be set: by others' the agent's could be taken away.

    By its own number a process cannot set them either: a filter does not know who asks.
    """
    return [
        _argument(0),
        (_JEQ, 5, 0, 0),
        _argument(2),
        (_JEQ, 0, 2, 0),
        _argument(2, high=True),
        (_JEQ, 1, 0, 0),
        _refuse(errno.EPERM),
        _PERMIT,
    ]


def _without(index: int, flag: int, otherwise: int) -> list[Instruction]:
    return [_argument(index), (_JSET, 0, 1, flag), _refuse(otherwise), _PERMIT]


def _check_setsockopt() -> list[Instruction]:
    """SO_SNDBUF succeeds and does nothing: what waits in a socket stays within the system's default."""
    return [
        _argument(1),
        (_JEQ, 0, 3, socket.SOL_SOCKET),
        _argument(2),
        (_JEQ, 0, 1, socket.SO_SNDBUF),
        _refuse(0),
        _PERMIT,
    ]


def _uncharged_checks() -> dict[str, list[Instruction]]:
    """Where no cgroup charges memory: what would hold some that cannot be counted (see UNCHARGED).

    A memfd is held by descriptors that wait in sockets, a page that vmsplice has lent by a pipe. Programs
    fall back to /dev/shm, and to copying, as on kernels without these calls. A thread with descriptors of
    its own (clone, close_range with CLOSE_RANGE_UNSHARE; unshare is refused anyway) hides pipes. C libraries,
    Python, Go, Node and Java do neither; the answer is that of kernels that do not know the flag.
    """
    return {
        "clone": _check_clone_uncharged(),
        "close_range": _without(2, _CLOSE_RANGE_UNSHARE, errno.EINVAL),
        "memfd_create": [_refuse(errno.ENOSYS)],
        "vmsplice": [_refuse(errno.ENOSYS)],
        "fcntl": [_argument(1), (_JEQ, 0, 1, _F_SETPIPE_SZ), _refuse(errno.EPERM), _PERMIT],
        "setsockopt": _check_setsockopt(),
    }


def _checks() -> dict[str, list[Instruction]]:
    """What is done with a call whose arguments matter; each ends in a return.

    Huge pages are the machine's: a pool of its own that no memory cgroup charges.
    """
    return {
        "memfd_create": _without(1, _MFD_HUGETLB, errno.EINVAL),
        "mmap": _without(3, _MAP_HUGETLB, errno.ENOMEM),
        "shmget": _without(2, _SHM_HUGETLB, errno.ENOMEM),
        "clone": _check_clone(),
        "clone3": [_refuse(errno.ENOSYS)],  # its flags are in memory, out of a filter's sight
        "socket": _check_socket(),
        "socketpair": _one_of(0, (socket.AF_UNIX,), errno.EPERM),
        "ioctl": _check_ioctl(),
        "personality": _one_of(0, (0, 0xFFFFFFFF), errno.EPERM),
        "prlimit64": _check_prlimit(),
        "setpriority": _check_priority(_PRIO_PROCESS, _PRIO_PGRP),
        "ioprio_set": _check_priority(_IOPRIO_PROCESS, _IOPRIO_PGRP),
        "sched_setaffinity": _check_process(0),
        "sched_setattr": _check_process(0),
        "sched_setparam": _check_process(0),
        "sched_setscheduler": _check_process(0),
    }


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted numbers as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def program(machine: str, charged: bool = True) -> list[Instruction]:
    """The filter for `machine` (as `platform.machine()` says). Raises ValueError for an unknown one.

    `charged`: a cgroup charges all memory of the sandbox.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call table for {machine}; known are {', '.join(ARCHITECTURES)}")
    column, architecture = ARCHITECTURES[machine]
    built: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, architecture),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_JGE, 0, 1, _X32),
        (_RET, 0, 0, _KILL),
        (_JGT, 0, 1, NEWEST),
        _refuse(errno.ENOSYS),
    ]
    checks = _checks() if charged else _checks() | _uncharged_checks()
    for name, pair in (CHECKED if charged else CHECKED | UNCHARGED).items():
        check = checks[name]
        built += [(_JEQ, 0, len(check), pair[column]), *check]
    numbers = [both[column] for both in ALLOWED.values()]
    for first, last in ranges(number for number in numbers if number is not None):
        built += [(_JGT, 3, 0, last), (_JGE, 0, 1, first), _PERMIT, _refuse(errno.EPERM)]
    return [*built, _refuse(errno.EPERM)]


def encode(instructions: Iterable[Instruction]) -> bytes:
    """The program as the kernel's array of struct sock_filter."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
