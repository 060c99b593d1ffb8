"""The sandboxes that live on this machine: found, adopted, noticed when they end, swept when left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from llmsafespace_gateway.backends.base import Ended
from llmsafespace_gateway.backends.local import launch, limits, plans, records
from llmsafespace_gateway.backends.local.keeper import files, processes
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.backends.local.records import Claimed, EndRecord, State
from llmsafespace_gateway.egress.proxy import EgressProxy

log = logging.getLogger("llmsafespace.local")

NOTICES = "notices.sock"
_LOOK_EVERY = 1.0  # seconds between looks for keepers that were killed and could tell nobody


class Entry:
    """A living sandbox: what it is and, once claimed, whose."""

    def __init__(self, state: State, folder: Path, claimed: Claimed | None) -> None:
        self.state = state
        self.folder = folder
        self.claimed = claimed
        self.record: EndRecord | None = None  # how it ended

    @property
    def egress_key(self) -> str:
        """How the egress proxy and its audit entries call it."""
        return self.claimed.sandbox_id if self.claimed is not None else self.state.name


class Registry:
    """Keeps account of every living sandbox of this data folder. `on_end(entry)` is called after each end."""

    def __init__(self, host: Host, egress: EgressProxy | None, on_end: Callable[[Entry], None]) -> None:
        self._host = host
        self._egress = egress
        self._on_end = on_end
        self._sandboxes = host.data_dir / "sandboxes"
        self._ended = host.data_dir / "ended"
        self.entries: dict[str, Entry] = {}
        self._by_id: dict[str, Entry] = {}
        self._news: deque[tuple[Path, Ended]] = deque()
        self._more = asyncio.Event()
        self._notices: socket.socket | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ending: dict[str, asyncio.Task[EndRecord | None]] = {}

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt the living that are claimed, end the others, sweep what is left of the dead."""
        self._listen()
        for folder in sorted(self._sandboxes.iterdir()):
            await self._take_in(folder)
        for path in sorted(self._ended.glob("*.json")):
            self._note(path)
        self._looking = asyncio.create_task(self._look(), name="look for killed keepers")

    async def stop(self) -> None:
        """Stop listening; the sandboxes stay as they are."""
        tasks = [*self._ending.values()]
        if self._looking is not None:
            self._looking.cancel()
            tasks.append(self._looking)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._notices is not None:
            asyncio.get_running_loop().remove_reader(self._notices.fileno())
            self._notices.close()
            records.remove(self._host.data_dir / NOTICES)

    async def _take_in(self, folder: Path) -> None:
        state = records.read(folder / "state.json", State)
        claimed = records.read(folder / "claim.json", Claimed)
        if records.keeper_of(folder) is None:
            await asyncio.to_thread(self._sweep, folder)
        elif state is None or claimed is None:
            await launch.end(folder, "lost")
        else:
            entry = self.add(state, claimed)
            await self._open_egress(entry)

    def _listen(self) -> None:
        path = self._host.data_dir / NOTICES
        records.remove(path)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with launch.short_address(path) as address:
            self._notices.bind(address)
            os.chmod(address, 0o600)
        asyncio.get_running_loop().add_reader(self._notices.fileno(), self._noticed, self._notices)

    # -- what lives --------------------------------------------------------------------------------

    def add(self, state: State, claimed: Claimed | None = None) -> Entry:
        """Take account of a sandbox whose keeper lives."""
        entry = Entry(state, self._sandboxes / state.name, claimed)
        self.entries[state.name] = entry
        if claimed is not None:
            self._by_id[claimed.sandbox_id] = entry
        return entry

    def get(self, sandbox_id: str) -> Entry | None:
        """The living, claimed sandbox of this id."""
        return self._by_id.get(sandbox_id)

    def fate(self, sandbox_id: str) -> Ended | None:
        """How a sandbox ended, `lost` when that is not known (any more), None while it lives."""
        if sandbox_id in self._by_id:
            return None
        told = (ended for _, ended in self._news if ended.sandbox_id == sandbox_id)
        return next(told, Ended(sandbox_id=sandbox_id, end="lost", message="it is no longer there"))

    def claimed(self) -> list[Entry]:
        """All living, claimed sandboxes."""
        return list(self._by_id.values())

    async def claim(self, entry: Entry, claimed: Claimed) -> bool:
        """Make a warm sandbox somebody's, durably; False when it has just ended."""
        try:
            launch.write_lifetime(entry.folder, claimed.max_lifetime + launch.TO_BIND)
            records.write(entry.folder / "claim.json", claimed)
        except FileNotFoundError:
            return False
        if records.keeper_of(entry.folder) is None:
            return False
        entry.claimed = claimed
        self._by_id[claimed.sandbox_id] = entry
        await self.settle(entry)
        return True

    async def settle(self, entry: Entry) -> None:
        """Give a claimed sandbox its way out and its full share of the processor."""
        limits.settle_cpu(
            self._host.hierarchy, plans.cgroup_name(entry.state.name), entry.state.resources.cpu
        )
        await self._open_egress(entry)

    async def _open_egress(self, entry: Entry) -> None:
        if self._egress is not None and entry.claimed is not None and self._host.bwrap is not None:
            await self._egress.open(
                entry.egress_key, entry.folder / "egress", entry.claimed.egress, entry.state.uid
            )

    # -- ends --------------------------------------------------------------------------------------

    async def end(self, entry: Entry, word: str) -> EndRecord | None:
        """End a sandbox; returns how it really ended when nothing of it is left and the end is noted."""
        await launch.end(entry.folder, word)
        self._conclude_later(entry.state.name)
        if entry.state.name in self._ending:
            return await asyncio.shield(self._ending[entry.state.name])
        return entry.record

    async def _conclude(self, name: str) -> EndRecord | None:
        entry = self.entries[name]
        await launch.gone(entry.folder)
        if entry.folder.exists():  # its keeper was killed
            await asyncio.to_thread(self._sweep, entry.folder)
        del self.entries[name]
        if entry.claimed is not None:
            self._by_id.pop(entry.claimed.sandbox_id, None)
            if self._egress is not None:
                await self._egress.close(entry.egress_key)
        entry.record = self._note(self._ended / f"{name}.json")
        self._on_end(entry)
        return entry.record

    def _noticed(self, notices: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._conclude_later(notices.recv(256).decode("ascii", "replace"))

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for name, entry in list(self.entries.items()):
                if records.keeper_of(entry.folder) is None:
                    self._conclude_later(name)

    def _conclude_later(self, name: str) -> None:
        if name in self.entries and name not in self._ending:
            task = asyncio.create_task(self._conclude(name), name=f"end of {name}")
            self._ending[name] = task
            task.add_done_callback(lambda _: self._ending.pop(name, None))

    def _note(self, path: Path) -> EndRecord | None:
        """Queue the record of an end for `news`, or drop it when nobody had claimed the sandbox."""
        record = records.read(path, EndRecord)
        if record is None or record.sandbox_id is None:
            records.remove(path)
            return record
        self._news.append((path, Ended(sandbox_id=record.sandbox_id, end=record.end, message=record.message)))
        self._more.set()
        return record

    def forget(self, name: str) -> None:
        """Take back the news of a sandbox that failed while it started: who asked for it hears the error."""
        path = self._ended / f"{name}.json"
        records.remove(path)
        self._news = deque(each for each in self._news if each[0] != path)

    async def news(self) -> AsyncIterator[Ended]:
        """Every end of a claimed sandbox; its record is removed when the next one is asked for."""
        while True:
            while not self._news:
                self._more.clear()
                await self._more.wait()
            path, ended = self._news[0]
            yield ended
            if self._news and self._news[0][0] == path:
                self._news.popleft()
            records.remove(path)

    # -- what the dead left ------------------------------------------------------------------------

    def _sweep(self, folder: Path) -> None:
        """Remove everything of a sandbox whose keeper was killed (blocking)."""
        state = records.read(folder / "state.json", State)
        claimed = records.read(folder / "claim.json", Claimed)
        groups = list(state.cgroups if state is not None else self._cgroups(folder.name))
        processes.kill_left(files.read_file(str(folder / "first")), groups)
        for path in groups:
            processes.remove_cgroup(path)
        if claimed is not None and not (self._ended / f"{folder.name}.json").exists():
            message = "the process that kept the sandbox was killed"
            records.write(
                self._ended / f"{folder.name}.json",
                EndRecord(sandbox_id=claimed.sandbox_id, end="lost", message=message),
            )
        files.remove_tree(str(folder))
        log.warning("swept what was left of sandbox %s", folder.name)

    def _cgroups(self, name: str) -> list[str]:
        return [
            f"{parent}/{plans.cgroup_name(name)}" for parent in set(self._host.hierarchy.folders.values())
        ]
