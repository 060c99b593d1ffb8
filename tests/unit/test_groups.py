"""The runner of tests by group: what it tries again, how it ends, and what its last lines say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import groups
from tests.groups import Group, counts_of

TESTS = """
import pathlib
import pytest
tried = pathlib.Path(__file__).with_suffix(".tried")

def test_good():
    pass

@pytest.mark.parametrize("name", ["page tables"])
def test_race(name):
    first = not tried.exists()
    tried.touch()
    assert not first

def test_skipped():
    pytest.skip("the reason")
"""
GOOD = "def test_it(): pass\n"
RED = "def test_bad():\n    assert False\n"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run groups of these files with real pytest processes: status, and what was printed."""
    monkeypatch.setattr(groups, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take a second of each process

    def run(files: dict[str, str], *options: str, beside: str = "") -> tuple[int, str]:
        made = {}
        for name, text in files.items():
            (tmp_path / f"test_{name}.py").write_text(text)
            made[name] = Group(name, "about it", (f"test_{name}.py",), beside=name == beside)
        monkeypatch.setattr(groups, "GROUPS", made)
        monkeypatch.setattr(groups, "USUAL", tuple(made))
        monkeypatch.setattr(sys, "argv", ["tests.groups", *options])
        capfd.readouterr()
        return groups.main(), capfd.readouterr().out

    return run


def test_what_fails_is_tried_once_more_and_named_last(run: Any, tmp_path: Path) -> None:
    """Also in the report of a later call that shares the file of results."""
    kept = str(tmp_path / "results")
    files = {"races": TESTS, "steady": GOOD, "later": GOOD}
    status, said = run(files, "races", "steady", "--carry", kept, beside="races")
    assert status == 0
    assert said.index("######## steady") < said.index("######## races, which ran beside the others")
    named = "PASSED AT THE SECOND TRY races: test_races.py::test_race[page tables]"
    assert said.splitlines()[-2] == named
    assert said.splitlines()[-1].startswith("======== 3 passed, 1 skipped in ")
    status, said = run(files, "later", "--carry", kept)
    assert status == 0
    assert said.splitlines()[-2] == named
    assert said.splitlines()[-1].startswith("======== 4 passed, 1 skipped in ")


def test_a_failure_that_stays_makes_the_run_fail(run: Any) -> None:
    status, said = run({"bad": RED, "broken": "import nothing_of_that_name\n", "empty": "", "good": GOOD})
    assert status == 1
    assert "FAILED bad: test_bad.py::test_bad\n" in said
    assert "FAILED broken: " in said
    assert "FAILED empty" not in said
    assert "======== 1 passed, 2 failed in " in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("=== 1 failed, 3 passed, 1 warning in 39.53s ===", {"failed": 1, "passed": 3}),
        ("1 failed, 2 errors, 3 passed in 61.00s (0:01:01)", {"failed": 3, "passed": 3}),
        ("===== no tests ran in 0.01s =====", {}),
        ("===== 4 deselected in 0.01s =====", {"deselected": 4}),
    ],
)
def test_closing_lines(line: str, found: dict[str, int]) -> None:
    assert counts_of(f"some output\n{line}\n") == found
