"""IPython's history without SQLite and without a file: this session's, in memory, up to a size."""

from __future__ import annotations

import fnmatch
from collections import deque
from typing import Any

from IPython.core.history import HistoryManager

KEPT = 8 * 1024 * 1024  # characters of code; the oldest cells go first


class History(HistoryManager):
    """What `history_request`, `%history` and the up-arrow of consoles ask for.

    IPython itself keeps the inputs of the session in two lists, from which everything is answered. A line
    that is forgotten stays in them as an empty text, as `In` counts them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: deque[tuple[int, int]] = deque()
        self._size = 0

    def store_inputs(self, line_num: int, source: str, source_raw: str | None = None) -> None:
        """Note a cell."""
        before = len(self.input_hist_raw)
        super().store_inputs(line_num, source, source_raw)
        if len(self.input_hist_raw) == before:
            return
        self._kept.append((before, len(self.input_hist_raw[-1])))
        self._size += self._kept[-1][1]
        while self._size > KEPT and len(self._kept) > 1:
            line, size = self._kept.popleft()
            self._size -= size
            for lines in (self.input_hist_raw, self.input_hist_parsed):
                if line < len(lines):
                    lines[line] = ""
            self.shell.user_ns.pop(f"_i{line}", None)

    def reset(self, new_session: bool = True) -> None:
        """Forget this session."""
        super().reset(new_session)
        self._kept.clear()
        self._size = 0

    def get_tail(
        self, n: int | None = 10, raw: bool = True, output: bool = False, include_latest: bool = False
    ) -> Any:
        """The last `n` cells, the newest last; the one that asks only with `include_latest`."""
        lines = self._lines(raw, output)
        if not include_latest:
            lines = lines[:-1]
        count = 10 if n is None else n
        return lines[-count:] if count > 0 else []

    def search(
        self,
        pattern: str = "*",
        raw: bool = True,
        search_raw: bool = True,
        output: bool = False,
        n: int | None = None,
        unique: bool = False,
    ) -> Any:
        """The last `n` cells that match a pattern of `*`, `?` and `[…]`, the newest last."""
        found: list[Any] = []
        seen: set[str] = set()
        texts = self.input_hist_raw if search_raw else self.input_hist_parsed
        for line in reversed(self._lines(raw, output)):
            text = texts[line[1]]
            if not fnmatch.fnmatchcase(text, pattern) or (unique and text in seen):
                continue
            seen.add(text)
            found.append(line)
            if n is not None and len(found) >= n:
                break
        return found[::-1]

    def _lines(self, raw: bool, output: bool) -> list[Any]:
        lines = self._get_range_session(1, None, raw, output)
        return [line for line in lines if self.input_hist_raw[line[1]]]
