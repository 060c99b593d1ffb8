"""Telling people how far a preparation is: a bar on a terminal, log lines always, a callback for programs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from tqdm import tqdm

log = logging.getLogger("llmsafespace.runtimes")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a preparation. `total` grows while packages are discovered; `done == total` is the end."""

    runtime: str
    text: str
    done: int
    total: int


Progress = Callable[[Step], None]


class ProgressBars:
    """A `Progress` that shows one bar for each runtime on a terminal and nothing elsewhere."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def __call__(self, step: Step) -> None:
        if not sys.stderr.isatty():
            return
        bar = self._bars.get(step.runtime)
        if bar is None:
            bar = tqdm(
                desc=f"Preparing {step.runtime}",
                bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} {elapsed}{postfix}",
                file=sys.stderr,
                leave=True,
            )
            self._bars[step.runtime] = bar
        bar.total = step.total
        bar.n = step.done
        bar.set_postfix_str(step.text)
        if step.done == step.total:
            bar.close()
            del self._bars[step.runtime]


class Steps:
    """Counts the steps of one preparation and reports each."""

    def __init__(self, runtime: str, report: Progress, total: int) -> None:
        self._runtime = runtime
        self._report = report
        self._done = 0
        self._total = total

    def found(self, more: int) -> None:
        """`more` steps than known before are ahead."""
        self._total += more

    def step(self, text: str) -> None:
        """`text` begins; what was before is done."""
        log.debug("%s: %s", self._runtime, text)
        self._report(Step(runtime=self._runtime, text=text, done=self._done, total=self._total))
        self._done = min(self._done + 1, self._total - 1)

    def finish(self) -> None:
        """All is done."""
        self._report(Step(runtime=self._runtime, text="ready", done=self._total, total=self._total))
