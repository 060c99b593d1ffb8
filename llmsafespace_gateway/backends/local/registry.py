"""The sandboxes that live on this machine: found, adopted, noticed when they end, swept when left behind.

An end is told twice over: by the keeper's notice (or a look each second, for a keeper that was killed), and
by a record in `<data_dir>/ended` that stays until the store knows. Its word comes from that record, from who
asked for the end when the disk had no room for one, and is `lost` otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from llmsafespace_gateway.backends.base import Ended, Quarantined
from llmsafespace_gateway.backends.local import intake, launch, limits, plans, records, sweeping
from llmsafespace_gateway.backends.local.keeper.processes import start_time
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.backends.local.records import Bound, Broken, Claimed, EndRecord, State
from llmsafespace_gateway.egress.proxy import EgressProxy
from llmsafespace_gateway.errors import ApiError

log = logging.getLogger("llmsafespace.local")

NOTICES = "notices.sock"
_LOOK_EVERY = 1.0  # seconds between looks for keepers that were killed and could tell nobody
_TIDY_EVERY = 60.0  # seconds between looks for folders that nobody accounts for
_TIDY_AFTER = 300.0  # seconds after which a folder is nobody's start any more


class Entry:
    """A living sandbox: what it is and, once claimed, whose."""

    def __init__(
        self, state: State, folder: Path, claimed: Claimed | None, bound: Bound | None = None
    ) -> None:
        self.state = state
        self.folder = folder
        self.claimed = claimed
        self.bound = bound
        self.asked: str | None = None  # the word of who ends it
        self.record: EndRecord | None = None  # how it ended
        self.keeper = records.keeper_of(folder) or 0
        self.keeper_started = start_time(self.keeper) if self.keeper else "0"

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
        self._news: deque[Ended] = deque()  # not told yet
        self._untold: dict[str, tuple[Path, Ended]] = {}  # by sandbox id: what the store may not know
        self._held: set[str] = set()  # of these, those that the store cannot take now
        self._quarantined: dict[str, Quarantined] = {}
        self._more = asyncio.Event()
        self._notices: socket.socket | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ending: dict[str, asyncio.Task[EndRecord | None]] = {}

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt the living that are claimed, end the others, sweep what is left of the dead.

        What cannot be taken in is quarantined (see intake.py); it never keeps the others waiting.
        """
        self._listen()
        for folder in sorted(self._sandboxes.iterdir()):
            await self._take_in(folder)
        for path in sorted(self._ended.iterdir()):
            if path.suffix == ".json":
                self._note(path)
            elif not (self._sandboxes / path.name.partition(".")[0]).exists():
                records.remove(path)  # room that was reserved for a sandbox that is no more
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
        try:
            await self._judge(folder)
        except Exception as error:
            log.exception("sandbox folder %s could not be taken in", folder.name)
            self._quarantine(folder, f"it could not be taken in: {error}")

    async def _judge(self, folder: Path) -> None:
        if not intake.is_ours(folder):
            self._quarantine(folder, "it is no sandbox's folder, and was left alone; remove it")
            return
        if records.keeper_of(folder) is None:
            await asyncio.to_thread(sweeping.sweep, self._host, folder)
            return
        try:
            found = intake.examine(folder)
            if found is not None and found.claimed.sandbox_id in self._by_id:
                raise Broken(f"claim.json names {found.claimed.sandbox_id}, which is another's")
        except Broken as error:
            await self._shut_away(folder, str(error))
            return
        if found is None:
            await launch.end(folder, "lost")
            return
        entry = self.add(found.state, found.claimed, found.bound)
        with contextlib.suppress(OSError):  # where it died in the middle of its claim
            self._settle_cpu(entry, bound=True)
        try:
            await self._open_egress(entry)
        except (OSError, ValueError, ApiError) as error:
            self._quarantine(folder, f"it has no way out: {error}", kept=True)

    async def _shut_away(self, folder: Path, reason: str) -> None:
        """Nobody can reach a sandbox whose records are broken: end it, and keep them for whoever looks."""
        await asyncio.to_thread(intake.keep_aside, folder, self._host.data_dir / "quarantine", reason)
        self._quarantine(folder, f"{reason}; it was ended, its records are in quarantine/{folder.name}")
        await launch.end(folder, "lost")

    def _quarantine(self, folder: Path, reason: str, *, kept: bool = False) -> None:
        sandbox_id, tenant = intake.sandbox_id_of(folder)
        known = self._quarantined.get(folder.name)
        self._quarantined[folder.name] = Quarantined(
            name=folder.name,
            reason=reason,
            since=known.since if known is not None else time.time(),
            kept=kept,
            sandbox_id=sandbox_id,
            tenant=tenant,
        )
        if known is None or known.reason != reason:
            log.error("sandbox %s (%s) is quarantined: %s", folder.name, sandbox_id or "unknown", reason)

    def quarantined(self) -> list[Quarantined]:
        """What could not be taken in as it was."""
        return list(self._quarantined.values())

    async def tidy(self) -> None:
        """Look again at folders that nobody accounts for, and at ways out that could not be opened."""
        for name, each in list(self._quarantined.items()):
            entry = self.entries.get(name)
            if each.kept and entry is not None:
                with contextlib.suppress(OSError, ValueError, ApiError):
                    await self._open_egress(entry)
                    del self._quarantined[name]
        before = time.time() - _TIDY_AFTER
        for folder in sorted(self._sandboxes.iterdir()):
            if folder.name not in self.entries and intake.is_ours(folder) and _older(folder, before):
                await self._take_in(folder)

    def _listen(self) -> None:
        path = self._host.data_dir / NOTICES
        records.remove(path)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with launch.short_address(path) as address:
            self._notices.bind(address)
            os.chmod(address, 0o600)
        asyncio.get_running_loop().add_reader(self._notices.fileno(), self._noticed, self._notices)

    # -- what lives --------------------------------------------------------------------------------

    def add(self, state: State, claimed: Claimed | None = None, bound: Bound | None = None) -> Entry:
        """Take account of a sandbox whose keeper lives."""
        entry = Entry(state, self._sandboxes / state.name, claimed, bound)
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
        if sandbox_id in self._untold:
            return self._untold[sandbox_id][1]
        return Ended(sandbox_id=sandbox_id, end="lost", message="it is no longer there")

    def claimed(self) -> list[Entry]:
        """All living, claimed sandboxes."""
        return list(self._by_id.values())

    def bind(self, entry: Entry, bound: Bound) -> None:
        """It is its owner's from now on: no more processor than they asked for, and a note of what that was.

        Raises OSError when its share of the processor cannot be set.
        """
        self._settle_cpu(entry, bound=True)
        entry.bound = bound
        try:
            records.write(entry.folder / "bound.json", bound)
        except OSError as error:  # a full disk: a lost store could not be made up for, no more
            log.warning("sandbox %s could not be written down: %s", entry.egress_key, error)

    async def claim(self, entry: Entry, claimed: Claimed) -> bool:
        """Make a warm sandbox somebody's, durably; False when it has just ended.

        Raises OSError or ValueError; the sandbox is to be ended then.
        """
        try:
            launch.write_lifetime(entry.folder, claimed.max_lifetime + launch.TO_BIND)
            records.write(entry.folder / "claim.json", claimed)
        except FileNotFoundError:
            return False
        if records.keeper_of(entry.folder) is None:
            records.remove(entry.folder / "claim.json")  # this id gets another sandbox
            return False
        entry.claimed = claimed
        self._by_id[claimed.sandbox_id] = entry
        await self.settle(entry)
        return True

    async def settle(self, entry: Entry) -> None:
        """Give a claimed sandbox its way out and its share of the processor. Raises OSError or ValueError."""
        self._settle_cpu(entry, bound=False)
        await self._open_egress(entry)

    def _settle_cpu(self, entry: Entry, *, bound: bool) -> None:
        limits.settle_cpu(
            self._host.hierarchy,
            plans.cgroup_name(entry.state.name),
            entry.state.resources.cpu,
            bound=bound,
        )

    async def _open_egress(self, entry: Entry) -> None:
        if self._egress is not None and entry.claimed is not None and self._host.bwrap is not None:
            await self._egress.open(
                entry.egress_key, entry.folder / "egress", entry.claimed.egress, entry.state.uid
            )

    # -- ends --------------------------------------------------------------------------------------

    async def end(self, entry: Entry, word: str) -> EndRecord | None:
        """End a sandbox; returns how it really ended when nothing of it is left and the end is noted."""
        entry.asked = entry.asked or word
        if not await launch.end(entry.folder, word):
            await launch.kept_no_more(entry.keeper, entry.keeper_started)
        self._conclude_later(entry.state.name)
        if entry.state.name in self._ending:
            return await asyncio.shield(self._ending[entry.state.name])
        return entry.record

    async def _conclude(self, name: str) -> EndRecord | None:
        entry = self.entries[name]
        left = None
        await launch.gone(entry.folder)
        try:
            if entry.folder.exists():  # its keeper was killed
                left = await asyncio.to_thread(sweeping.sweep, self._host, entry.folder)
            else:
                await launch.kept_no_more(entry.keeper, entry.keeper_started)
        except OSError:
            log.exception("something is left of sandbox %s", name)
        del self.entries[name]
        if self._egress is not None and entry.claimed is not None:
            await self._egress.close(entry.egress_key)
        entry.record = self._note(self._ended / f"{name}.json", entry, left)
        if entry.claimed is not None:
            self._by_id.pop(entry.claimed.sandbox_id, None)
        if name in self._quarantined and self._quarantined[name].kept:
            del self._quarantined[name]
        self._on_end(entry)
        return entry.record

    def _noticed(self, notices: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._conclude_later(notices.recv(256).decode("ascii", "replace"))

    async def _look(self) -> None:
        tidied = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for name, entry in list(self.entries.items()):
                if records.keeper_of(entry.folder) is None:
                    self._conclude_later(name)
            if time.monotonic() - tidied > _TIDY_EVERY:
                tidied = time.monotonic()
                try:
                    await self.tidy()
                except Exception:
                    log.exception("the folders of sandboxes could not be looked through")

    def _conclude_later(self, name: str) -> None:
        if name in self.entries and name not in self._ending:
            task = asyncio.create_task(self._conclude(name), name=f"end of {name}")
            self._ending[name] = task
            task.add_done_callback(lambda _: self._ending.pop(name, None))

    def _note(
        self, path: Path, entry: Entry | None = None, left: EndRecord | None = None
    ) -> EndRecord | None:
        """Queue the record of an end for `news`, or drop it when nobody had claimed the sandbox.

        Where the disk had no room for a record, `left` or the word of who ended `entry` take its place.
        """
        record = records.read(path, EndRecord) or left
        claimed = entry.claimed if entry is not None else None
        if claimed is not None and (record is None or record.sandbox_id != claimed.sandbox_id):
            word = record.end if record is not None else (entry.asked if entry is not None else None)
            message = record.message if record is not None else ""
            record = EndRecord(sandbox_id=claimed.sandbox_id, end=word or "lost", message=message)
        if record is None:
            log.warning("the record %s of an end cannot be read", path.name)
        # A record can name whom a claim was for that came too late: that id is another sandbox's by now.
        if record is None or record.sandbox_id is None or (entry is not None and claimed is None):
            records.remove(path)
            records.remove(records.reserved(path))
            return record
        ended = Ended(sandbox_id=record.sandbox_id, end=record.end, message=record.message)
        self._untold[record.sandbox_id] = (path, ended)
        self._news.append(ended)
        self._more.set()
        return record

    def forget(self, entry: Entry) -> None:
        """Take back the news of a sandbox that failed while it started: who asked for it hears the error."""
        records.remove(self._ended / f"{entry.state.name}.json")
        if entry.claimed is not None:
            self._untold.pop(entry.claimed.sandbox_id, None)
            self._news = deque(each for each in self._news if each.sandbox_id != entry.claimed.sandbox_id)

    def hold(self, sandbox_id: str) -> None:
        """The store does not know this end yet: its record stays until it is `noted`."""
        self._held.add(sandbox_id)

    def noted(self, sandbox_id: str) -> None:
        """The store knows this end: its record is removed."""
        self._held.discard(sandbox_id)
        path, _ = self._untold.pop(sandbox_id, (None, None))
        if path is not None:
            records.remove(path)
            records.remove(records.reserved(path))

    async def news(self) -> AsyncGenerator[Ended, None]:
        """Every end of a claimed sandbox once, first those that a former process did not hear or held."""
        while True:
            while not self._news:
                self._more.clear()
                await self._more.wait()
            ended = self._news[0]
            yield ended
            if self._news and self._news[0] is ended:
                self._news.popleft()
            if ended.sandbox_id not in self._held:
                self.noted(ended.sandbox_id)


def _older(folder: Path, moment: float) -> bool:
    try:
        return folder.stat().st_mtime < moment
    except OSError:
        return False
