"""The keeper of one sandbox: a small process on the host that outlives the gateway.

Run as `python -I -S keeper/` with a plan (see plans.py) on standard input, in marshal form. It detaches,
starts the sandbox, answers `ok <host uid>` or the reason of a failure on standard output, waits for the
sandbox to end, and then removes its processes, cgroups and folder and leaves a record of the end.

It ends the sandbox on SIGTERM, when its clock says so (see clock.py; SIGHUP: look again), and, unless the
sandbox is claimed, when the gateway is gone (the end of the lifeline pipe). When the keeper itself is killed,
bubblewrap dies with it; the next gateway sweeps.

Only the standard library, and little of it: each sandbox has one such process, on the way of a cold start.
"""

# ruff: noqa: SIM105  # contextlib would cost each keeper a few milliseconds and more memory

from __future__ import annotations

import fcntl
import marshal
import os
import resource
import select
import signal
import sys
from typing import Any

from .clock import WORDS, Clock
from .files import place_descriptors, read_file, remove_tree, write_file, write_reserved
from .processes import (
    family,
    family_alive,
    kill_everything,
    make_cgroup,
    oom_kills,
    remove_cgroup,
    start_time,
)

_SET_CHILD_SUBREAPER = 36
_LOG_TAIL = 4096
_SHORT = 500  # characters of a message that fit into the room of a record, whatever they are


class Refused(Exception):
    """The sandbox cannot be started."""


class Keeper:
    """One sandbox from its start to the removal of everything of it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.folder: str = plan["folder"]
        self.uid: int | None = None
        self.child = 0
        self.first = 0  # process 1 of the sandbox, by its number on the host
        self.first_fd = -1  # the same as a pidfd
        self.exit_status: int | None = None  # of a sandbox that ended by itself
        self.reaped: int | None = None
        self.log = b""
        self.asked_to_end = False
        self.over: str | None = None  # the clock's word
        self.clock: Clock
        self.wakeup = self.status = self.output = -1

    # -- start -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the sandbox and hand it its configuration. Raises Refused or OSError."""
        self._hold_lock()
        self._take_uid()
        self._catch_signals()
        for group in self.plan["cgroups"]:
            make_cgroup(group)
        if self.plan["bwrap"] is None:
            from .staging import libc_call

            libc_call("prctl", _SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        config_read, config_write = os.pipe()
        self.status, status_write = os.pipe()
        self.output, output_write = os.pipe()
        clock_read, clock_write = os.pipe()
        self.clock = Clock(clock_read, self.folder)
        self.child = os.fork()
        if self.child == 0:
            try:
                self._become_sandbox(config_read, status_write, output_write, clock_write)
            except BaseException as error:
                os.write(output_write, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(126)
        for fd in (config_read, status_write, output_write, clock_write, self.plan["listen"]):
            os.close(fd)
        self.first = self._first_process() if self.plan["bwrap"] else self.child
        try:
            self.first_fd = os.pidfd_open(self.first)
        except ProcessLookupError:
            pass  # it died at once: wait() says how
        self._limit_first()
        write_file(f"{self.folder}/first", f"{self.first} {start_time(self.first)}")
        try:
            with open(config_write, "wb") as config:
                config.write(self.plan["config"])
        except BrokenPipeError:
            pass  # it died at once: wait() says how

    def _hold_lock(self) -> None:
        """A lock that names this process as the sandbox's keeper for as long as it lives."""
        self.lock = os.open(f"{self.folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _take_uid(self) -> None:
        """A host uid that no other living sandbox has: a byte of one file, locked until this process ends."""
        if self.plan["uids"] is None:
            return
        path, base, count = self.plan["uids"]
        self.uids = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        first = int.from_bytes(os.urandom(4), "big") % count
        for index in range(count):
            offset = (first + index) % count
            try:
                fcntl.lockf(self.uids, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            except OSError:
                continue
            self.uid = base + offset
            return
        raise Refused(f"all {count} uids from {base} on are taken by living sandboxes")

    def _catch_signals(self) -> None:
        self.wakeup, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # the wakeup is what matters
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _asked(self, number: int, frame: object) -> None:
        self.asked_to_end = True

    def _become_sandbox(self, config: int, status: int, output: int, clock: int) -> None:
        """In the child: cgroups, sources staged, descriptors, limits, the uid, then bubblewrap."""
        plan = self.plan
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for group in plan["cgroups"]:
            write_file(f"{group['path']}/cgroup.procs", "0")
        if plan["staged"] is not None:
            from .staging import stage

            stage(plan["stage"], plan["staged"])
        wanted = {0: config, 1: output, 2: output, plan["listen_fd"]: plan["listen"]}
        wanted[plan["clock_fd"]] = clock
        if plan["bwrap"] is not None:
            wanted[plan["seccomp_fd"]] = os.open(plan["seccomp"], os.O_RDONLY)
            wanted[plan["status_fd"]] = status
        place_descriptors(wanted)
        os.umask(0o022)
        os.chdir(plan["cwd"])
        if plan["bwrap"] is None:
            os.setsid()
        for kind, value in plan["rlimits"]:
            hard = resource.getrlimit(kind)[1]
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (limit, limit))
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        os.execve(plan["argv"][0], plan["argv"], plan["env"])  # noqa: S606

    def _first_process(self) -> int:
        """Wait for bubblewrap to name the sandbox's first process."""
        text = b""
        while b"\n" not in text:
            piece = os.read(self.status, 4096)
            if not piece:
                raise Refused(f"bubblewrap failed: {self._collect_output() or 'without a word'}")
            text += piece
        return int(text.split(b'"child-pid":')[1].split(b",")[0].split(b"}")[0])

    def _limit_first(self) -> None:
        """Limits of process 1, inherited by all others. Its real uid may set them; root without
        CAP_SYS_RESOURCE may not, so root is that uid meanwhile.
        """
        if self.uid is not None:
            os.setresgid(self.uid, -1, -1)
            os.setresuid(self.uid, -1, -1)
        try:
            for kind, value in self.plan["inside_rlimits"]:
                resource.prlimit(self.first, kind, (value, value))
        finally:
            if self.uid is not None:
                os.setresuid(0, -1, -1)
                os.setresgid(0, -1, -1)

    def _collect_output(self) -> str:
        os.waitpid(self.child, 0)
        self.child = 0
        os.set_blocking(self.output, False)
        try:
            self.log += os.read(self.output, 65536)
        except BlockingIOError:
            pass
        return self.tail()

    def tail(self) -> str:
        """The end of what the sandbox's first process said."""
        return self.log.decode("utf-8", "replace").strip()[-_LOG_TAIL:]

    # -- wait --------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Return when the sandbox has ended by itself, or is to end."""
        child = os.pidfd_open(self.child)
        poll = select.poll()
        for fd in (child, self.wakeup, self.output, self.plan["lifeline"], self.clock.pipe):
            poll.register(fd, select.POLLIN)
        while not self.asked_to_end:
            ready = [fd for fd, _ in poll.poll(self.clock.wait())]
            if child in ready:
                self._reap()
                self.exit_status = self.reaped
                return
            for fd in ready:
                if fd == self.plan["lifeline"]:
                    poll.unregister(fd)
                    if not os.path.exists(f"{self.folder}/claim.json"):
                        return
                    self.clock.look()  # the gateway may have claimed it and died before it said so
                elif fd == self.output:
                    piece = os.read(fd, 65536)
                    if not piece:
                        poll.unregister(fd)
                    self.log = (self.log + piece)[-_LOG_TAIL:]
                elif fd == self.wakeup:
                    os.read(fd, 64)
                    self.clock.look()
                else:
                    self._listen(poll)
            if self.clock.rested():
                poll.register(self.clock.pipe, select.POLLIN)
            self.over = self.clock.over()
            if self.over is not None:
                return

    def _listen(self, poll: select.poll) -> None:
        """Hear the agent's deadlines; one that writes all the time is heard ten times a second."""
        if not self.clock.listen() or self.clock.resting:
            poll.unregister(self.clock.pipe)

    def try_out(self) -> None:
        """Wait for a program that is to end at once and well. Raises Refused with what it said."""
        self.wait()
        self._drain_log()
        if self.exit_status != 0:
            raise Refused(self.tail() or f"status {self.exit_status}")

    # -- end ---------------------------------------------------------------------------------------

    def end(self, record: bool = True) -> None:
        """Kill what lives, record the end, remove everything."""
        killed = read_file(self.plan["oom_file"]) if self.plan["oom_file"] else ""
        self._kill()
        self._drain_log()
        for group in self.plan["cgroups"]:
            remove_cgroup(group["path"])
        if record:
            self._record(killed)
        remove_tree(self.folder)
        self._tell()

    def _kill(self) -> None:
        groups = [group["path"] for group in self.plan["cgroups"]]
        kill_everything(groups, self.first_fd, self._others, self._reap)

    def _others(self) -> list[int]:
        """Every process of the sandbox that is not dead, as the tree of processes tells."""
        if self.plan["bwrap"] is None:
            return family(os.getpid())[1:]  # orphans come to this process
        below = family_alive(self.first, self.first_fd)
        if below:
            return below
        return [self.child] if self.child else []  # bubblewrap itself comes last: its end frees nobody

    def _reap(self) -> None:
        """Collect what has died of this process's children; without waiting."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.reaped = os.waitstatus_to_exitcode(status)
                self.child = 0

    def _drain_log(self) -> None:
        if self.output < 0:
            return
        os.set_blocking(self.output, False)
        try:
            while piece := os.read(self.output, 65536):
                self.log = (self.log + piece)[-_LOG_TAIL:]
        except BlockingIOError:
            pass

    def _record(self, killed: str) -> None:
        import json

        try:
            sandbox_id = json.loads(read_file(f"{self.folder}/claim.json") or "{}").get("sandbox_id")
        except (ValueError, AttributeError, RecursionError):
            sandbox_id = None  # the record is broken: the gateway looks for rows without a sandbox
        asked = read_file(f"{self.folder}/end").strip()
        if self.over is not None:
            end, message = self.over, WORDS[self.over]
        else:
            words = self.plan["exit_status"]
            end, message = verdict(asked, self.exit_status, oom_kills(killed), words, self.tail())
        path = f"{self.plan['ended']}/{os.path.basename(self.folder)}.json"
        try:
            for text in (message, message[:_SHORT]):
                record = {"sandbox_id": sandbox_id, "end": end, "message": text}
                if write_reserved(path + ".new", json.dumps(record)):
                    os.rename(path + ".new", path)
                    return
        except OSError:
            pass  # whoever asked for the end knows its word; the rest must be removed all the same

    def _tell(self) -> None:
        """Tell a gateway that listens; one that does not looks at the records when it starts."""
        import socket

        os.chdir(self.plan["data_dir"])  # the address must be short
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.setblocking(False)
            try:
                notices.sendto(os.path.basename(self.folder).encode(), "notices.sock")
            except OSError:
                pass


def verdict(asked: str, status: int | None, ooms: int, words: dict[int, str], said: str) -> tuple[str, str]:
    """The end of a sandbox in one word, and a sentence where the word needs one.

    `asked` is the word of who ended it, `status` the exit status of its first process, `ooms` how often the
    kernel killed for memory, `words` what the agent means by an exit status.
    """
    if asked:
        return asked, ""
    if status is None:
        return "terminated", "its keeper was asked to end it"
    if status in words:
        return words[status], ""
    if ooms and status in (-9, 137):
        return "oom", "the sandbox ran out of memory"
    what = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    what = f"the sandbox's agent {what}"
    return "lost", f"{what}: {said}" if said else what


def main() -> None:
    """Detach, start, answer, keep."""
    plan = marshal.load(sys.stdin.buffer)  # noqa: S302  # from the gateway that started this process
    if os.fork():
        os._exit(0)
    os.umask(0o022)  # what it makes for its sandbox, cgroups too, is read there by another uid
    os.setsid()
    answer = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    keeper = Keeper(plan)
    try:
        keeper.start()
        if plan["trial"]:
            keeper.try_out()
        else:
            answer.write(f"ok {keeper.uid if keeper.uid is not None else os.getuid()}")
            answer.close()
            keeper.wait()
    except (OSError, Refused) as error:
        keeper.end(record=False)
        answer.write(str(error))
    else:
        keeper.end(record=not plan["trial"])
        if plan["trial"]:
            answer.write("ok 0")
    if not answer.closed:
        answer.close()
