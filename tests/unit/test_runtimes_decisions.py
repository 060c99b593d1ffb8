"""Pure decisions of the runtimes: names, the machine's pip configuration, programs, interpreters."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.backends.runtimes import discovery
from llmsafespace_gateway.backends.runtimes.choice import Choice, choose
from llmsafespace_gateway.backends.runtimes.discovery import Interpreter, candidates, one_per_minor
from llmsafespace_gateway.backends.runtimes.folders import UNUSED_AFTER, made_once, mark_used, sweep_unused
from llmsafespace_gateway.backends.runtimes.pip_config import PipConfig, parse_config, pip_config, render
from llmsafespace_gateway.backends.runtimes.preparation import inside_python, with_interpreter
from llmsafespace_gateway.backends.runtimes.progress import Step, Steps
from llmsafespace_gateway.backends.runtimes.runtimes import default_cache_dir

AVAILABLE = {"3.9": "3.9.18", "3.11": "3.11.7", "3.13": "3.13.0"}


@pytest.mark.parametrize(
    ("requested", "language", "minor", "warns"),
    [
        ("python:3.11", "python", "3.11", False),
        ("python:3.11.7", "python", "3.11", False),
        ("python:3.11.4", "python", "3.11", True),
        ("python3.9", "python", "3.9", False),
        ("Python", "python", "3.11", False),
        ("python:3", "python", "3.11", False),
        ("python3", "python", "3.11", False),
        ("python:latest", "python", "3.11", False),
        ("python:3.10", "python", "3.11", True),
        ("python:3.12", "python", "3.13", True),
        ("python:3.8", "python", "3.9", True),
        ("python:3.99", "python", "3.13", True),
        ("bash", "bash", "3.11", False),
        ("bash:5.2", "bash", "3.11", False),
        ("bash:3", "bash", "3.11", True),
    ],
)
def test_choose(requested: str, language: str, minor: str, warns: bool) -> None:
    choice = choose(requested, AVAILABLE, "3.11", "5.2")
    assert isinstance(choice, Choice)
    assert (choice.language, choice.minor, bool(choice.warning)) == (language, minor, warns)
    assert not warns or requested in choice.warning


@pytest.mark.parametrize(
    "requested", ["", ":", "ruby:3.3", "python:2.7", "python:x", "python3:3.11", "../etc", "a b"]
)
def test_nothing_serves(requested: str) -> None:
    assert isinstance(choose(requested, AVAILABLE, "3.11", "5.2"), str)


def test_no_bash_no_bash_runtime() -> None:
    assert isinstance(choose("bash", AVAILABLE, "3.11", None), str)


def test_pip_configuration() -> None:
    listing = (
        ":env:.cert='/ca.pem'\n:env:.find-links='/srv/wheels'\nglobal.index-url='https://low/simple'\n"
        "install.index-url='https://user:secret@index.example/simple'\n"
        "global.extra-index-url='https://more.example/simple\\nfile:///srv'\nglobal.trusted-host='a b'\n"
    )
    config = pip_config(parse_config(listing), "/ca.pem")
    assert config == PipConfig(
        index_url="https://index.example/simple",
        extra_index_urls=("https://more.example/simple",),
        trusted_hosts=("a", "b"),
        ca_file="/ca.pem",
        had_credentials=True,
    )
    written = render(config)
    assert "index-url = https://index.example/simple" in written
    assert "secret" not in written
    assert "find-links" not in written
    assert "proxy = http://127.0.0.1:3128" in written


def test_pip_configuration_of_a_machine_without_one() -> None:
    assert pip_config(parse_config(""), None).index_urls == ("https://pypi.org/simple",)
    assert pip_config({"index-url": "file:///srv/simple"}, None).index_url == "https://pypi.org/simple"


def test_programs_get_the_inside_interpreter() -> None:
    body = b"import sys\nsys.exit(0)\n"
    assert with_interpreter(b"#!/a/b/bin/python\n" + body, "/opt/p") == b"#!/opt/p\n" + body
    long = b"#!/bin/sh\n'''exec' " + b"/x" * 100 + b"/bin/python \"$0\" \"$@\"\n' '''\n" + body
    assert with_interpreter(long, "/opt/p") == b"#!/opt/p\n" + body
    assert with_interpreter(b"#!/bin/sh\nls\n", "/opt/p") == b"#!/bin/sh\nls\n"
    assert with_interpreter(b"\x7fELF", "/opt/p") == b"\x7fELF"


def interpreter(version: str, path: str = "/x/bin/python3", prefix: str = "/x") -> Interpreter:
    return Interpreter(path=path, version=version, prefix=prefix, sites=("/x/lib/site-packages",))


def test_one_interpreter_for_each_minor_version() -> None:
    own = interpreter("3.11.2", "/usr/bin/python3.11", "/usr")
    found = [interpreter("3.11.9"), own, interpreter("3.9.1"), interpreter("3.9.18"), interpreter("3.13.0")]
    chosen = one_per_minor(found, own)
    assert {minor: one.version for minor, one in chosen.items()} == {
        "3.9": "3.9.18",
        "3.11": "3.11.2",
        "3.13": "3.13.0",
    }
    assert list(chosen) == ["3.9", "3.11", "3.13"]


def test_where_the_interpreter_is_inside(tmp_path: Path) -> None:
    assert inside_python(interpreter("3.11.2", "/usr/bin/python3.11", "/usr")) == "/usr/bin/python3.11"
    prefix = str(tmp_path.resolve())
    one = interpreter("3.12.1", f"{prefix}/bin/python3.12", prefix)
    assert inside_python(one) == "/opt/python/bin/python3.12"


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    """A folder of everything that a search for interpreters may stumble on."""
    closed = tmp_path / "closed" / "versions" / "3.11" / "bin"
    closed.mkdir(parents=True)
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "python3").symlink_to("python3.1")
    (folder / "python3.1").symlink_to("python3")  # a loop
    (folder / "python3.2").symlink_to("/nowhere/python")
    (folder / "python3.3").mkdir()
    os.mkfifo(folder / "python3.4")
    (folder / "python3.5").write_bytes(b"\x7fELF but no program")
    (folder / "python3.5").chmod(0o755)
    (folder / "python3.6").write_bytes(b"")
    for number in range(5000):
        (folder / f"other-{number}").touch()
    yield tmp_path
    (tmp_path / "closed").chmod(0o755)


@pytest.mark.parametrize(
    "root", ["closed", "odd/python3.4", "nowhere", "odd/[", "", "relative", "odd/python3"]
)
def test_what_cannot_be_read_or_is_broken_does_not_stop_the_start(
    root: str, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unreadable, missing, looping, hanging and huge: each is passed over, and the good one is found."""
    scandir = os.scandir

    def refusing(path: Any = ".") -> Any:  # as for an ordinary user, whoever runs the test
        if "closed" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    good = os.path.realpath(sys.executable)
    path = f"{broken}/odd:{broken}/closed:{broken}/nowhere:/proc/1/fd:{broken}/odd/python3.5:\n:"
    pyenv = str(broken / root) if root not in ("", "relative") else root
    found = candidates({"PATH": path, "PYENV_ROOT": pyenv}, broken / "closed", good)
    assert found[0] == good
    assert set(found) & {str(broken / "odd" / f"python3.{n}") for n in (1, 2, 3, 4, 6)} == set()


@pytest.mark.parametrize(
    "script",
    ["exit 3", "echo '{}'", "echo nonsense", "kill -9 $$", "exec sleep 60", "exec yes", "sleep 60 & exit 0"],
)
async def test_a_program_that_answers_nonsense_is_no_interpreter(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "PROBE_TIMEOUT", 0.5)
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert await discovery.probe(str(program)) is None


def test_candidates_are_programs_once_without_shims(tmp_path: Path) -> None:
    real, shims, versions = tmp_path / "real", tmp_path / "shims", tmp_path / ".pyenv/versions/3.12.1/bin"
    for folder in (real, shims, versions):
        folder.mkdir(parents=True)
    for path in (real / "python3.12", real / "python3-config", versions / "python3.13"):
        path.write_bytes(b"\x7fELF....")
        path.chmod(0o755)
    (real / "python3").symlink_to("python3.12")
    (shims / "python3.11").write_text("#!/bin/sh\n")
    (shims / "python3.11").chmod(0o755)
    searched = os.pathsep.join(("", "relative", str(shims), str(real), str(tmp_path / "missing")))
    found = candidates({"PATH": searched}, tmp_path, str(real / "python3"))
    below = [entry for entry in found if entry.startswith(str(tmp_path.resolve()))]
    assert below == [str((real / "python3.12").resolve()), str((versions / "python3.13").resolve())]


def test_steps_end_at_their_total() -> None:
    told: list[Step] = []
    steps = Steps("python:3.11", told.append, 2)
    steps.step("creating environment")
    steps.found(1)
    steps.step("numpy")
    steps.step("compiling")
    steps.step("one more than was planned")
    assert all(step.done < step.total for step in told)
    steps.finish()
    assert told[-1].done == told[-1].total


def test_cache_folder() -> None:
    home = Path("/home/u")
    assert default_cache_dir({}, home) == Path("/home/u/.cache/llmsafespace/runtimes")
    assert default_cache_dir({"XDG_CACHE_HOME": "/c"}, home) == Path("/c/llmsafespace/runtimes")
    assert default_cache_dir({"LLMSAFESPACE_RUNTIMES": "/r", "XDG_CACHE_HOME": "/c"}, home) == Path("/r")


async def fill(folder: Path, fail: bool = False) -> None:
    async with made_once(folder) as staging:
        if staging is not None:
            (staging / "program").write_text("x")
            (staging / "program").chmod(0o700)
            (staging / "data").write_text("x")
            (staging / "data").chmod(0o600)
            if fail:
                raise RuntimeError("failed")


async def test_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "one"
    with pytest.raises(RuntimeError):
        await fill(folder, fail=True)
    assert not folder.exists()
    left_by_a_crash = folder.parent / ".one.staging"
    (left_by_a_crash / "deep").mkdir(parents=True)
    await fill(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "program"]
    assert (folder / "program").stat().st_mode & 0o777 == 0o755
    assert (folder / "data").stat().st_mode & 0o777 == 0o644
    assert not left_by_a_crash.exists()
    await fill(folder, fail=True)  # made already: the block is given nothing to do


def test_only_what_is_long_unused_is_swept(tmp_path: Path) -> None:
    for name in ("agent-old", "agent-new", "unmarked"):
        (tmp_path / name).mkdir()
    for name in ("agent-old", "agent-new"):
        mark_used(tmp_path / name)
    old = time.time() - UNUSED_AFTER - 60
    os.utime(tmp_path / "agent-old" / ".used", (old, old))
    assert sweep_unused(tmp_path, time.time()) == ["agent-old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent-new", "unmarked"]
