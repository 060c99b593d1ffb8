"""Run the tests by named groups and print a table: group, passed, failed, skipped, time.

    python -m tests.groups                    what `make test` and CI run
    python -m tests.groups unit heavy         these groups
    python -m tests.groups --list
    python -m tests.groups unit --carry FILE  the results go to FILE; a later call with it reports on both

Each group is a pytest process. The cluster's tests mostly wait for a cluster, so that group runs beside the
others; its output is kept and printed whole, below a heading of its own, when it has ended. What fails is
tried once more, alone, after everything else: a failure that stays makes the run fail, and one that goes is a
race to be found, in the product or in its test. Both are named at the end, above the line that counts all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
COUNTED = ("passed", "failed", "skipped", "error", "errors", "deselected")
_NO_TESTS = 5  # pytest's exit status where no test was selected


@dataclass(frozen=True)
class Group:
    """What a group runs (arguments of pytest); `beside` says that it runs beside the others."""

    name: str
    about: str
    arguments: tuple[str, ...]
    beside: bool = False


GROUPS = {
    group.name: group
    for group in (
        Group("unit", "no sandbox, no gateway", ("tests/unit", "--numprocesses=auto")),
        Group("integration", "real gateways, sandboxes and kernels", ("tests/integration",)),
        Group("security", "attacks and faults", ("tests/security", "tests/faults")),
        Group("clients", "JupyterLab, nbclient and other clients", ("tests/clients",)),
        Group("cluster", "on the cluster that KUBECONFIG names", ("tests/cluster",), beside=True),
        Group("heavy", "long forms, without a cluster", ("-m", "heavy", "tests", "--ignore=tests/cluster")),
        Group("heavy-cluster", "long forms on a cluster", ("-m", "heavy", "tests/cluster"), beside=True),
    )
}
USUAL = tuple(name for name in GROUPS if not name.startswith("heavy"))


@dataclass
class Result:
    """How a group ended: pytest's status and counts, and the tests that failed at first and for good."""

    group: Group
    status: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failed_at_first: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def red(self) -> bool:
        """Whether the run fails for it."""
        return self.status not in (0, _NO_TESTS)


def counts_of(text: str) -> dict[str, int]:
    """The counts of pytest's closing line, `errors` counted as failed; nothing where there is none."""
    lines = re.findall(r"^=* ?((?:\d+ \w+(?:, )?)+) in [\d.]+s.*$", text, re.MULTILINE)
    found: dict[str, int] = {}
    for number, word in re.findall(r"(\d+) (\w+)", lines[-1] if lines else ""):
        if word in COUNTED:
            name = "failed" if word.startswith("error") else word
            found[name] = found.get(name, 0) + int(number)
    return found


class Run:
    """One process of pytest; `log` takes its output where it is not shown as it comes."""

    def __init__(self, group: Group, folder: Path, options: Sequence[str], *, hidden: bool) -> None:
        self.result = Result(group)
        self._cache = folder / group.name
        self._log = (folder / f"{group.name}.log").open("w+")
        self._hidden = hidden
        self._began = time.monotonic()
        self._options = options
        self._process = self._start(options)

    def _start(self, options: Sequence[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", *self.result.group.arguments, *options]
        command += ["-o", f"cache_dir={self._cache}"]
        output: IO[str] | int = self._log if self._hidden else subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)

    def wait(self) -> Result:
        """Wait for its end, then show what was kept."""
        said = self._show()
        self.result.status = self._process.wait()
        self.result.seconds = time.monotonic() - self._began
        if self._hidden:
            self._log.seek(0)
            said = self._log.read()
            heading(f"{self.result.group.name}, which ran beside the others")
            print(said, flush=True)
        self.result.counts = counts_of(said)
        self.result.failed_at_first = self.result.failed = self._left()
        return self.result

    def again(self) -> None:
        """Try what failed once more."""
        result, first = self.result, self.result.status
        if first != 1 or not result.failed_at_first:
            return  # pytest itself failed, or a session's end did
        heading(f"{result.group.name}: what failed at first is tried once more, alone")
        self._hidden = False
        self._process = self._start([*self._options, "--last-failed", "--last-failed-no-failures=none"])
        counted = counts_of(self._show())
        result.status = self._process.wait()
        result.failed = self._left()
        good = counted.get("passed", 0)
        result.counts["passed"] = result.counts.get("passed", 0) + good
        result.counts["failed"] = max(0, result.counts.get("failed", 0) - good)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _show(self) -> str:
        if self._process.stdout is None:
            return ""
        said: list[str] = []
        for line in self._process.stdout:
            print(line, end="", flush=True)
            said.append(line)
        return "".join(said)

    def _left(self) -> list[str]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self._cache / "v" / "cache" / "lastfailed").read_text())
            return sorted(name for name, failed in found.items() if failed)
        return []


def heading(text: str) -> None:
    """A line that can be found in a long output."""
    print(f"\n######## {text}", flush=True)


@contextlib.contextmanager
def running(groups: Sequence[Group], folder: Path, options: Sequence[str]) -> Iterator[list[Run]]:
    """Run all groups to their end, those beside the others first; nothing runs on afterwards."""
    alone = len(groups) == 1
    beside = [Run(group, folder, options, hidden=not alone) for group in groups if group.beside]
    runs = list(beside)
    try:
        for group in groups:
            if not group.beside:
                heading(f"{group.name}: {group.about}")
                runs.append(Run(group, folder, options, hidden=False))
                runs[-1].wait()
        for run in beside:
            run.wait()
        yield runs
    finally:
        for run in runs:
            run.stop()


def report(results: Sequence[Result], seconds: float) -> int:
    """Print table, names and the closing line; the exit status."""
    heading("by group")
    print(f"{'group':<16}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for each in results:
        row = "".join(f"{each.counts.get(name, 0):>{width}}" for name, width in _COLUMNS)
        note = "" if each.counts.get("passed") or each.red else "  left out"
        print(f"{each.group.name:<16}{row}{each.seconds:>9.0f}{note}")
    red = [each for each in results if each.red]
    for each in red:
        for name in each.failed or [f"(pytest ended with {each.status})"]:
            print(f"FAILED {each.group.name}: {name}")
    for each in results:
        for name in sorted(set(each.failed_at_first) - set(each.failed)):
            print(f"PASSED AT THE SECOND TRY {each.group.name}: {name}")
    total = {name: sum(each.counts.get(name, 0) for each in results) for name, _ in _COLUMNS}
    total["failed"] = max(total["failed"], len(red))
    words = ", ".join(f"{total[name]} {name}" for name, _ in _COLUMNS if total[name] or name == "passed")
    print(f"======== {words} in {seconds:.2f}s ========", flush=True)
    return 1 if red or not total["passed"] else 0


_COLUMNS = (("passed", 8), ("failed", 8), ("skipped", 9))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.groups", description="Run tests by group.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"default: {' '.join(USUAL)}")
    parser.add_argument("--list", action="store_true", help="say which groups there are")
    parser.add_argument("--carry", type=Path, help="a file that keeps results for the next call's report")
    parser.add_argument("--durations", type=int, default=15, help="how many of the slowest tests are named")
    given = parser.parse_args()
    if given.list:
        for group in GROUPS.values():
            print(f"{group.name:<16}{group.about}")
        return 0
    names = given.groups or list(USUAL)
    if unknown := [name for name in names if name not in GROUPS]:
        parser.error(f"unknown group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    began = time.monotonic()
    options = [f"--durations={given.durations}"]
    with tempfile.TemporaryDirectory(prefix="llmsafespace-tests-") as folder:
        with running([GROUPS[name] for name in names], Path(folder), options) as runs:
            for run in runs:
                run.again()
            results = [run.result for run in runs]
        results.sort(key=lambda each: names.index(each.group.name))
    if given.carry is not None:
        results = [*carried(given.carry), *results]
        given.carry.write_text(json.dumps([asdict(each) for each in results]))
    return report(results, time.monotonic() - began)


def carried(file: Path) -> list[Result]:
    """The results that an earlier call has left in a file."""
    found = json.loads(file.read_text()) if file.exists() and file.stat().st_size else []
    return [Result(**{**each, "group": GROUPS[each["group"]["name"]]}) for each in found]


if __name__ == "__main__":
    sys.exit(main())
