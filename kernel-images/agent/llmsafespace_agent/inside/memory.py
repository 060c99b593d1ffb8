"""All memory that a sandbox holds where no cgroup charges it: counted through /proc, kind by kind.

A process takes memory in more ways than its own pages, and some outlive it. Each kind is counted here, and
the few that cannot be seen are refused by the seccomp filter where memory is not charged (memfd_create,
vmsplice, larger pipes and socket buffers; huge pages everywhere). Files in memory file systems are bounded
by the sizes of these, and are counted as storage.

* private pages and page tables: VmRSS and its kin, exact (PSS) when the upper bound exceeds the limit and
  the lower bound does not;
* shared anonymous mappings: the kernel keeps all of such an object while one page of it is mapped, so that
  neither RSS nor the size of what is still mapped tells. An object counts by the most that was ever seen of
  it, a new one by at least the page faults that its process had meanwhile: each of its pages took one;
* System V shared memory, messages and semaphores: exact, as this IPC namespace is the sandbox's own;
* sockets: TCP and UDP by their queues, as soon as there are more than a few, because one of TCP may grow to
  many MiB; unix sockets by their number; pipes by the number of descriptors;
* inodes of memory file systems (an empty file costs 1 KiB and no storage), terminals, memory areas.

/proc/PID tells of memory and descriptors by the process' main thread. When that has ended and others go on,
only the folder of a living thread, /proc/PID/task/TID, does.

All figures lean towards too much for what ordinary programs hardly use, and are exact for what they do.
"""

# contextlib would cost the worker memory

from __future__ import annotations

import ctypes
import os

from llmsafespace_agent.inside import processes

_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNIX_SOCKET = 208 * 1024  # what may wait in one: net.core.wmem_default
_FREE_SOCKETS = 128
_FREE_INTERNET = 4  # TCP and UDP sockets; reading of them takes milliseconds
_DESCRIPTOR = 4096  # half of a pipe once its user has many
_FREE_DESCRIPTORS = 512
_INODE = 1280
_FREE_INODES = 16_384
_TERMINAL = 140 * 1024
_AREA = 256  # struct vm_area_struct and what hangs on it
_FREE_AREAS = 4096
_MOST_AREAS = 65_530  # vm.max_map_count
_MOST_DESCRIPTORS = 4096  # counted where they cannot be
_TRIES = 8  # to find a living thread, where each may end while it is looked at
_LONGEST = 2**20  # bytes of a process' /proc/PID/maps that are read; the rest counts as the worst
_MESSAGE, _SEMAPHORE = 64, 66
_OFTEN = 1024  # page faults after which a process' mappings are looked at again
_SHARED = b"/dev/zero (deleted)"  # how /proc names an anonymous shared mapping


class _Stat:
    """A process' parent, page faults so far, start, and whether it goes on without its main thread."""

    def __init__(self, parent: int, faults: int, start: int, headless: bool) -> None:
        self.parent = parent
        self.faults = faults
        self.start = start
        self.headless = headless


class _Seen:
    """What is remembered of a process between two looks."""

    def __init__(self, stat: _Stat) -> None:
        self.start = stat.start
        self.looked_at = 0  # its page faults then
        self.areas = 0
        self.objects: dict[bytes, int] = {}  # shared mappings by inode: bytes mapped when looked at
        self.closed = False  # its mappings cannot be read


class Ledger:
    """Counts the memory of all processes of this pid namespace, whose process 1 this is."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._objects: dict[bytes, int] = {}  # by inode: the most that each was ever worth
        self._mounts = memory_file_systems()
        self._turn = 0
        self._factor = 512 if _huge_shared_pages() else 1

    def by_process(self) -> dict[int, int]:
        """What each process holds, in bytes; private pages that it shares with its parent count for both."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        held: dict[int, int] = {}
        descriptors: dict[int, int] = {}
        stats: dict[int, _Stat] = {}
        for pid in pids:
            stat = _stat(pid)
            if stat is not None:
                stats[pid] = stat
                held[pid], descriptors[pid] = _memory_and_descriptors(pid, stat)
        self._look(stats)
        spare = _FREE_DESCRIPTORS
        counted: set[bytes] = set()
        for pid in held:
            seen = self._seen[pid]
            held[pid] += max(0, seen.areas - _FREE_AREAS) * _AREA
            held[pid] += max(0, descriptors[pid] - spare) * _DESCRIPTOR
            spare = max(0, spare - descriptors[pid])
            held[pid] += sum(self._objects[inode] for inode in seen.objects if inode not in counted)
            counted.update(seen.objects)
            if seen.closed:
                held[pid] += stats[pid].faults * _PAGE
        return held

    def shared_and_kernels(self) -> int:
        """What belongs to no one process: System V objects, sockets, terminals, inodes."""
        inodes = sum(map(_inodes, self._mounts))
        return (
            system_v()
            + _sockets()
            + _count("/dev/pts") * _TERMINAL
            + max(0, inodes - _FREE_INODES * bool(self._mounts)) * _INODE
        )

    def _look(self, stats: dict[int, _Stat]) -> None:
        """Bring what is known of mappings up to date, where enough has happened."""
        for pid in [
            pid for pid, seen in self._seen.items() if pid not in stats or stats[pid].start != seen.start
        ]:
            del self._seen[pid]
        for pid in sorted(stats, key=lambda pid: stats[pid].start):  # parents before children
            if pid not in self._seen:
                seen = self._seen[pid] = _Seen(stats[pid])
                parent = self._seen.get(stats[pid].parent)
                if parent is not None and parent.looked_at:  # a fork has what its parent has
                    seen.areas, seen.objects = parent.areas, dict(parent.objects)
                    seen.looked_at = 1
        if not stats:
            return
        self._turn = (self._turn + 1) % len(stats)
        for number, (pid, stat) in enumerate(stats.items()):
            seen = self._seen[pid]
            if pid == os.getpid():
                continue
            if stat.faults - seen.looked_at >= _OFTEN or number == self._turn or not seen.looked_at:
                self._read_mappings(pid, stat, seen)
        living = {inode for seen in self._seen.values() for inode in seen.objects}
        self._objects = {inode: size for inode, size in self._objects.items() if inode in living}

    def _read_mappings(self, pid: int, stat: _Stat, seen: _Seen) -> None:
        text = _mappings(pid, stat)
        if text is None:
            seen.closed = os.path.exists(f"/proc/{pid}/maps")
            seen.looked_at = max(1, stat.faults)
            return
        seen.closed = len(text) >= _LONGEST
        seen.areas = _MOST_AREAS if seen.closed else text.count(b"\n")
        faults, seen.looked_at = stat.faults - seen.looked_at, max(1, stat.faults)
        seen.objects = shared_mappings(text)
        new = [inode for inode in seen.objects if inode not in self._objects]
        for inode in new:
            self._objects[inode] = faults * _PAGE * self._factor // len(new) if faults >= _OFTEN else 0
        for inode, size in seen.objects.items():
            self._objects[inode] = max(self._objects[inode], size)


def shared_mappings(maps: bytes) -> dict[bytes, int]:
    """The anonymous shared mappings of a /proc/PID/maps: bytes mapped, by inode."""
    found: dict[bytes, int] = {}
    if _SHARED not in maps:
        return found
    for line in maps.splitlines():
        if line.endswith(_SHARED):
            fields = line.split()
            start, _, end = fields[0].partition(b"-")
            size = int(end, 16) - int(start, 16) + int(fields[2], 16)  # what lies before it is held, too
            found[fields[4]] = max(found.get(fields[4], 0), size)
    return found


def _huge_shared_pages() -> bool:
    text = _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    return bool(text) and b"[never]" not in text


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> _Stat | None:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    headless = fields[0] == b"Z" and int(fields[17]) > 1
    return _Stat(int(fields[1]), int(fields[7]), int(fields[19]), headless)


def _memory_and_descriptors(pid: int, stat: _Stat) -> tuple[int, int]:
    """Private bytes and page tables of a process, and its descriptors."""
    if not stat.headless:
        return sum(_status(f"/proc/{pid}")), _descriptors(f"/proc/{pid}")
    for _ in range(_TRIES):
        folder = processes.folder(pid)
        descriptors = _descriptors(folder)
        if (held := sum(_status(folder))) > 0:  # asked last: the thread lived also before
            return held, descriptors
    return stat.faults * _PAGE, _MOST_DESCRIPTORS


def _mappings(pid: int, stat: _Stat) -> bytes | None:
    """The text of a process' maps, at least the first `_LONGEST` bytes; None where they cannot be read."""
    for _ in range(_TRIES if stat.headless else 1):
        text = b""
        try:
            folder = processes.folder(pid) if stat.headless else f"/proc/{pid}"
            with open(f"{folder}/maps", "rb", buffering=0) as file:
                while len(text) < _LONGEST and (piece := file.read(65536)):
                    text += piece
        except OSError:
            continue
        if text or not stat.headless:
            return text
    return None


def _status(folder: str) -> tuple[int, int]:
    """Private bytes in memory and swap (too much where processes share them), and page tables."""
    private = tables = 0
    for line in _read(f"{folder}/status").splitlines():
        if line.startswith((b"RssAnon:", b"VmSwap:")):
            private += int(line.split()[1]) * 1024
        elif line.startswith(b"VmPTE:"):
            tables = int(line.split()[1]) * 1024
    return private, tables


def _descriptors(folder: str) -> int:
    """The open descriptors of a process; the most that it has had room for where nobody may look into it."""
    try:
        return os.stat(f"{folder}/fd").st_size or len(os.listdir(f"{folder}/fd"))
    except PermissionError:  # not dumpable, on a kernel before Linux 6.2: 64 or 256 in an ordinary program
        for line in _read(f"{folder}/status").splitlines():
            if line.startswith(b"FDSize:"):
                return int(line.split()[1])
        return 0
    except OSError:
        return 0


def _count(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


# -- what belongs to no process ------------------------------------------------------------------------


def _column(text: bytes, *names: bytes) -> list[tuple[int, ...]]:
    """Columns of a table of /proc/sysvipc."""
    head, *rows = text.splitlines() or [b""]
    titles = head.split()
    if not set(names) <= set(titles):
        return []
    places = [titles.index(name) for name in names]
    return [tuple(int(fields[place]) for place in places) for fields in map(bytes.split, rows)]


def system_v() -> int:
    """Bytes of all System V objects of this IPC namespace."""
    shared = _column(_read("/proc/sysvipc/shm"), b"rss", b"swap")
    messages = _column(_read("/proc/sysvipc/msg"), b"cbytes", b"qnum")
    semaphores = _column(_read("/proc/sysvipc/sem"), b"nsems")
    return (
        sum(map(sum, shared))
        + sum(size + _MESSAGE * count for size, count in messages)
        + sum(map(sum, semaphores)) * _SEMAPHORE
    )


def remove_system_v() -> None:
    """Remove every System V object of this IPC namespace: unlike other memory they outlive all processes."""
    libc = ctypes.CDLL(None)
    for (number,) in _column(_read("/proc/sysvipc/shm"), b"shmid"):
        libc.shmctl(number, 0, None)
    for (number,) in _column(_read("/proc/sysvipc/msg"), b"msqid"):
        libc.msgctl(number, 0, None)
    for (number,) in _column(_read("/proc/sysvipc/sem"), b"semid"):
        libc.semctl(number, 0, 0)


def _sockets() -> int:
    """Bytes that wait in sockets of this network namespace."""
    used, internet = sockets_in_use(_read("/proc/net/sockstat") + _read("/proc/net/sockstat6"))
    if used <= _FREE_SOCKETS and internet <= _FREE_INTERNET:
        return 0
    waiting = open_ = 0
    for name in ("tcp", "tcp6", "udp", "udp6"):
        bytes_, rows = socket_queues(_read(f"/proc/net/{name}"))
        waiting += bytes_
        open_ += rows
    return waiting * 2 + max(0, used - open_ - _FREE_SOCKETS) * _UNIX_SOCKET


def sockets_in_use(sockstat: bytes) -> tuple[int, int]:
    """Of /proc/net/sockstat and sockstat6: sockets that a process has open, and all of TCP and UDP.

    The latter include connections that were closed or not yet accepted, and still hold what was sent.
    """
    used = internet = 0
    for line in sockstat.splitlines():
        name, _, figures = line.partition(b":")
        if name == b"sockets":
            used = int(figures.split()[1])
        elif name in (b"TCP", b"UDP", b"TCP6", b"UDP6"):
            internet += int(figures.split()[1])
    return used, internet


def socket_queues(table: bytes) -> tuple[int, int]:
    """Of a table such as /proc/net/tcp: bytes that wait, and the sockets among its rows that are open."""
    waiting = opened = 0
    for line in table.splitlines()[1:]:
        fields = line.split()
        sent, _, received = fields[4].partition(b":")
        waiting += int(sent, 16) + int(received, 16)
        opened += fields[9] != b"0"  # its inode
    return waiting, opened


def memory_file_systems() -> list[str]:
    """Where memory file systems are mounted that can be written to."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split()
        if right.startswith(b"tmpfs ") and b"rw" in fields[5].split(b","):
            found.append(os.fsdecode(fields[4]))
    return found


def _inodes(mount: str) -> int:
    try:
        about = os.statvfs(mount)
    except OSError:
        return 0
    return about.f_files - about.f_ffree


def least_total(held: dict[int, int]) -> int:
    """What `held` certainly comes to, however much of the private pages is shared. Cheap."""
    private = {pid: min(amount, processes.anonymous_memory(pid)) for pid, amount in held.items()}
    return sum(held.values()) - sum(private.values()) + max(private.values(), default=0)


def exact_total(held: dict[int, int]) -> int:
    """The sum of `held`, with private pages that processes share counted once.

    Costs milliseconds each, and a second for a process with a gigabyte of page tables, all of which are read.
    """
    return sum(
        amount - processes.anonymous_memory(pid) + processes.exact_memory(pid) for pid, amount in held.items()
    )
