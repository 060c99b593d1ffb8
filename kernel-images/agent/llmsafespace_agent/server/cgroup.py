"""What a cgroup, version 1 or 2, tells of memory. Reading is all that is done with it."""

from __future__ import annotations

from pathlib import Path


class MemoryGroup:
    """The memory figures of one cgroup folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._second = (folder / "memory.current").exists()

    @classmethod
    def at(cls, folder: str | None) -> MemoryGroup | None:
        """The group in `folder` (or in its folder `memory`), or None when nothing can be read there."""
        if folder is None:
            return None
        groups = (cls(Path(folder)), cls(Path(folder, "memory")))
        return next((group for group in groups if group.charged() is not None), None)

    def charged(self) -> int | None:
        """Every byte that is charged to the group, files in memory included."""
        return self._number("memory.current" if self._second else "memory.usage_in_bytes")

    def anonymous(self) -> int | None:
        """The bytes that belong to no file: tmpfs and page cache are not counted."""
        stat = self._table("memory.stat")
        return stat.get("anon") if self._second else stat.get("total_rss", stat.get("rss"))

    def kills(self) -> int:
        """How many processes the kernel has killed for lack of memory here."""
        return self._table("memory.events" if self._second else "memory.oom_control").get("oom_kill", 0)

    def _number(self, name: str) -> int | None:
        try:
            return int((self._folder / name).read_bytes())
        except (OSError, ValueError):
            return None

    def _table(self, name: str) -> dict[str, int]:
        try:
            lines = (self._folder / name).read_text().splitlines()
        except OSError:
            return {}
        pairs = (line.split() for line in lines)
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
