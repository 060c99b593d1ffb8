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
import select
import signal
import sys
import time
from typing import Any

from .clock import WORDS, Clock
from .files import read_file, remove_tree, write_file, write_reserved
from .processes import (
    family,
    kill_everything,
    make_cgroup,
    oom_kills,
    remove_cgroup,
    start_time,
)
from .side import Refused, Side

_SET_CHILD_SUBREAPER = 36
_LOG_TAIL = 4096
_LAST_WORDS = 10.0  # seconds for an agent to end in its own words when the code's sandbox has ended
_SHORT = 500  # characters of a message that fit into the room of a record, whatever they are


class Keeper:
    """One sandbox from its start to the removal of everything of it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.folder: str = plan["folder"]
        self.uid: int | None = None
        self.sides: list[Side] = []  # the code's, and its agent's; one for both where they are together
        self.exit_status: int | None = None  # of a sandbox that ended by itself
        self.log = b""
        self.asked_to_end = False
        self.over: str | None = None  # the clock's word
        self.clock: Clock
        self.wakeup = self.output = -1

    # -- start -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the sandbox and hand it its configuration. Raises Refused or OSError."""
        self._hold_lock()
        self._take_uid()
        self._catch_signals()
        self.sides = [Side(self.plan, own, self.uid) for own in self.plan["sides"]]
        for side in self.sides:
            for group in side.own["cgroups"]:
                make_cgroup(group)
        if self.plan["bwrap"] is None:
            from .staging import libc_call

            libc_call("prctl", _SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        config_write = self._start_sides()
        try:
            for side in self.sides:
                side.meet()
        except Refused as error:
            raise Refused(f"{error}: {self._collect_output() or 'without a word'}") from error
        known = [f"{side.first} {start_time(side.first)}" for side in self.sides]
        write_file(f"{self.folder}/first", "\n".join(known))
        try:
            with open(config_write, "wb") as config:
                config.write(self.plan["config"])
        except BrokenPipeError:
            pass  # it died at once: wait() says how

    def _start_sides(self) -> int:
        """Start all sides, joined by a socket where there are two; returns where the configuration goes."""
        plan = self.plan
        config_read, config_write = os.pipe()
        self.output, output_write = os.pipe()
        clock_read, clock_write = os.pipe()
        self.clock = Clock(clock_read, self.folder)
        agents = {0: config_read, plan["listen_fd"]: plan["listen"], plan["clock_fd"]: clock_write}
        given = [agents]
        if len(self.sides) > 1:
            from _socket import socketpair

            pair = [sock.detach() for sock in socketpair()]
            agents[plan["worker_fd"]] = pair[1]
            given.insert(0, {0: os.open(os.devnull, os.O_RDWR), plan["worker_fd"]: pair[0]})
        for side, descriptors in zip(self.sides, given, strict=True):
            side.start(descriptors, output_write)
        for fd in (output_write, *(fd for descriptors in given for fd in descriptors.values())):
            os.close(fd)
        return config_write

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

    def _collect_output(self) -> str:
        until = time.monotonic() + 1.0
        while all(side.child for side in self.sides) and time.monotonic() < until:  # who failed, ends
            self._reap()
            time.sleep(0.005)
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
        children = [side.child_fd for side in self.sides]
        agent = children[-1]
        code_ended: float | None = None
        poll = select.poll()
        for fd in (*children, self.wakeup, self.output, self.plan["lifeline"], self.clock.pipe):
            poll.register(fd, select.POLLIN)
        while not self.asked_to_end:
            ready = [fd for fd, _ in poll.poll(self._pause(code_ended))]
            if agent in ready:
                self._reap()
                self.exit_status = self.sides[-1].reaped
                return
            if code_ended is not None and time.monotonic() >= code_ended + _LAST_WORDS:
                self.exit_status = self.sides[0].reaped
                return
            for fd in ready:
                if fd in children:  # the code's: its agent hears of it, and has the last word
                    poll.unregister(fd)
                    code_ended = time.monotonic()
                    self._reap()
                    continue
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

    def _pause(self, code_ended: float | None) -> int | None:
        """Milliseconds until something is due."""
        wait = self.clock.wait()
        if code_ended is None:
            return wait
        left = max(0, int((code_ended + _LAST_WORDS - time.monotonic()) * 1000) + 1)
        return left if wait is None else min(wait, left)

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
        for side in self.sides:
            for group in side.groups:
                remove_cgroup(group)
        if record:
            self._record(killed)
        remove_tree(self.folder)
        self._tell()

    def _kill(self) -> None:
        groups = [group for side in self.sides for group in side.groups]
        firsts = [side.first_fd for side in self.sides]
        kill_everything(groups, firsts, self._others, self._reap)

    def _others(self) -> list[int]:
        """Every process of the sandbox that is not dead, as the tree of processes tells."""
        if self.plan["bwrap"] is None:
            return family(os.getpid())[1:]  # orphans come to this process
        return [pid for side in self.sides for pid in side.others()]

    def _reap(self) -> None:
        """Collect what has died of this process's children; without waiting."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for side in self.sides:
                if pid == side.child:
                    side.reaped = os.waitstatus_to_exitcode(status)
                    side.child = 0

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

    `asked` is the word of who ended it, `status` the exit status of its agent, `ooms` how often the
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
