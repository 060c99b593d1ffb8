"""What runs for a change on GitHub is what people run: targets of the Makefile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    return [step for job in document["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_targets_and_folders_are_there(workflow: Path) -> None:
    commands = "\n".join(step.get("run", "") for step in steps(workflow))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= TARGETS
    assert all((ROOT / path).exists() for path in re.findall(r"\b(?:tests/\w+|\.ci/\w+)", commands))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_tag(workflow: Path) -> None:
    actions = [step["uses"] for step in steps(workflow) if "uses" in step]
    pinned = re.compile(r"[\w-]+/[\w-]+@(?:release/)?v\d+")
    assert [action for action in actions if not pinned.fullmatch(action)] == []
