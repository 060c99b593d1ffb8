"""Paths beneath the workspace, with openat2 and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmsafespace_agent.server.beneath import Beneath, rename
from llmsafespace_agent.server.errors import AgentError


@pytest.fixture(params=[True, False], ids=["openat2", "walk"])
def beneath(request: pytest.FixtureRequest, tmp_path: Path) -> Beneath:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("s")
    return Beneath(str(root), openat2=request.param)


def read(beneath: Beneath, path: str) -> str:
    handle = beneath.open(beneath.relative(path), os.O_RDONLY)
    with os.fdopen(handle) as file:
        return file.read()


def test_paths_as_they_are_written(beneath: Beneath) -> None:
    root = beneath.root
    for path in ("a/b", f"{root}/a/b", "./a//b", "a/x/../b", "/workspace/a/b", f"{root}//a/b/"):
        assert beneath.relative(path) == "a/b"
    for path in ("", ".", root, "/workspace", "/workspace/", "a/.."):
        assert beneath.relative(path) == "."
    for path in ("..", "../x", "/etc", f"{root}x", "/workspacex", f"{root}/../x", "a\0", "a" * 5000):
        with pytest.raises(AgentError) as caught:
            beneath.relative(path)
        assert caught.value.code == "invalid_request"


def test_folders_are_made_and_files_opened(beneath: Beneath) -> None:
    beneath.make_folders("a/b/c")
    beneath.make_folders("a/b/c")
    Path(beneath.root, "a/b/c/f").write_text("x")
    assert read(beneath, "a/b/c/f") == "x"
    with pytest.raises(NotADirectoryError):
        beneath.make_folders("a/b/c/f/g")


def test_links_lead_nowhere_else(beneath: Beneath) -> None:
    root = Path(beneath.root)
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "relative").symlink_to("../secret")
    (root / "folder").symlink_to("..")
    (root / "magic").symlink_to("/proc/self/cwd")
    for path in ("absolute", "relative", "folder/secret", "magic/x"):
        with pytest.raises(OSError):  # noqa: PT011  # which one depends on the way
            read(beneath, path)
    with pytest.raises(OSError):  # noqa: PT011
        beneath.make_folders("folder/new")
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]


def test_a_rename_replaces_only_when_it_may(beneath: Beneath) -> None:
    root = Path(beneath.root)
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    with beneath.folder(".") as folder:
        with pytest.raises(FileExistsError):
            rename("a", folder, "b", folder, replace=False)
        rename("a", folder, "c", folder, replace=False)
        rename("c", folder, "b", folder, replace=True)
    assert os.listdir(root) == ["b"]
    assert (root / "b").read_text() == "a"
