"""The agent's decisions that need no kernel: limits, ends, digests, memory figures, environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmsafespace_agent.inside import space
from llmsafespace_agent.inside.own import OwnProcesses
from llmsafespace_agent.server import messages, validation
from llmsafespace_agent.server.cgroup import MemoryGroup
from llmsafespace_agent.server.command import end_of
from llmsafespace_agent.server.commands import installation
from llmsafespace_agent.server.errors import AgentError
from llmsafespace_agent.server.executions import Execution, Executions
from llmsafespace_agent.server.limits import due
from llmsafespace_agent.server.messages import Options
from llmsafespace_agent.server.start import checked
from llmsafespace_agent.server.watchdog import Watchdog
from llmsafespace_protocol.configuration import SandboxLimits, host_and_port
from llmsafespace_protocol.requests import Limits, PackagesInstall

LIMITS = Limits(timeout=None, idle_timeout=10.0, max_lifetime=100.0)


@pytest.mark.parametrize(
    ("now", "idle_since", "bound", "left"),
    [
        (50.0, 45.0, True, 5.0),
        (50.0, 40.0, True, 0.0),
        (50.0, None, True, 10.0),  # busy: it cannot be idle for long enough before that
        (95.0, None, True, 5.0),
        (50.0, 0.0, False, 50.0),  # nobody's sandbox may be idle
        (200.0, None, True, 0.0),
    ],
)
def test_when_a_sandbox_is_due(now: float, idle_since: float | None, bound: bool, left: float) -> None:
    assert due(now, idle_since, 0.0, LIMITS, bound)[0] == left


def test_why_a_sandbox_is_due() -> None:
    assert "idle" in due(60.0, 45.0, 0.0, LIMITS, True)[1]
    assert "lifetime" in due(160.0, 155.0, 0.0, LIMITS, True)[1]
    never_idle = Limits(timeout=None, idle_timeout=None, max_lifetime=100.0)
    assert due(60.0, 0.0, 0.0, never_idle, True)[0] == 40.0


@pytest.mark.parametrize(
    ("stop", "code", "end"),
    [
        (None, 0, "ok"),
        (None, 1, "error"),
        (None, -9, "error"),
        ("timeout", -15, "timeout"),
        ("timeout", 0, "timeout"),
        ("interrupted", 0, "ok"),
        ("interrupted", -2, "interrupted"),
        ("oom", -9, "oom"),
    ],
)
def test_how_a_command_ended(stop: str | None, code: int, end: str) -> None:
    assert end_of(stop, code) == end


def test_digests_know_content_from_spelling() -> None:
    one = messages.digest_of(b'{"code": "1", "silent": false}', Options(), "c")
    assert messages.digest_of(b'{"silent":false,"code":"1"}', Options(), "c") == one
    assert messages.digest_of(b'{"silent":false,"code":"2"}', Options(), "c") != one
    assert messages.digest_of(b'{"silent":false,"code":"1"}', Options(timeout=1.0), "c") != one
    assert messages.digest_of(b'{"silent":false,"code":"1"}', Options(), "d") != one


def test_a_reply_is_rewritten_only_where_it_must_be() -> None:
    content = {"status": "error", "execution_count": 4, "ename": "E", "evalue": "v", "traceback": ["t"]}
    parts = [b"h", b"p", b'{"started": "x"}', json.dumps(content).encode(), b"buffer"]
    told = messages.annotated(parts, "interrupted")
    assert told[:2] + told[3:] == parts[:2] + parts[3:]
    assert json.loads(told[2]) == {"started": "x", "llmsafespace": {"end": "interrupted"}}
    failed = messages.as_failure(parts, "timeout", "ExecutionTimeout", "too long")
    assert json.loads(failed[3]) == {**content, "ename": "ExecutionTimeout", "evalue": "too long"}
    assert failed[4] == b"buffer"


def test_the_table_of_executions_is_bounded_and_keeps_what_runs() -> None:
    table = Executions(kept=3)
    first = Execution("0", "c", "s", b"{}", 0, digest=b"d", durable=True)
    table.add(first)
    for number in range(1, 6):
        execution = Execution(str(number), "c", "s", b"{}", 0)
        execution.status = "ended"
        table.add(execution)
    assert [one.id for one in table] == ["0", "4", "5"]
    assert table.repeated("0", b"d", "") is first
    with pytest.raises(AgentError, match="somebody else"):
        table.repeated("0", b"d", "bob")
    assert table.repeated("9", b"d", "") is None
    with pytest.raises(AgentError):
        table.repeated("0", b"other", "")
    table.add(Execution("0", "c", "other", b"{}", 0))
    assert table.get("0") is first


@pytest.mark.parametrize(
    ("files", "charged", "anonymous", "kills"),
    [
        (
            {
                "memory.usage_in_bytes": "900\n",
                "memory.stat": "cache 500\nrss 300\ntotal_rss 400\n",
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            },
            900,
            400,
            2,
        ),
        (
            {
                "memory.current": "900\n",
                "memory.stat": "anon 400\nfile 500\n",
                "memory.events": "low 0\noom 1\noom_kill 1\n",
            },
            900,
            400,
            1,
        ),
    ],
    ids=["v1", "v2"],
)
def test_memory_figures(
    tmp_path: Path, files: dict[str, str], charged: int, anonymous: int, kills: int
) -> None:
    assert MemoryGroup.at(str(tmp_path)) is None
    controller = tmp_path / "memory"  # where version 1 mounts it
    controller.mkdir()
    for folder in (controller, tmp_path):
        for name, text in files.items():
            (folder / name).write_text(text)
        group = MemoryGroup.at(str(tmp_path))
        assert group is not None
        assert (group.charged(), group.anonymous(), group.kills()) == (charged, anonymous, kills)


def test_what_processes_share_counts_no_more_than_all_that_is_charged(tmp_path: Path) -> None:
    (tmp_path / "memory.usage_in_bytes").write_text("1000")
    limits = SandboxLimits(memory_bytes=2000, cgroup=str(tmp_path))
    assert Watchdog(limits, OwnProcesses(), list).at_most(3000) == 1000
    assert Watchdog(limits, OwnProcesses(), list).at_most(500) == 500
    assert Watchdog(SandboxLimits(memory_bytes=2000), OwnProcesses(), list).at_most(3000) == 3000


@pytest.mark.parametrize(
    ("mount", "own"),
    [
        ("40 30 0:41 / /workspace rw,nosuid shared:1 - tmpfs tmpfs rw,size=524288k", True),
        ("40 30 0:41 / /workspace rw - ext4 /dev/vdb rw", True),
        ("40 30 254:0 /pods/1/volumes /workspace rw - ext4 /dev/vda rw", False),
        ("43 34 0:41 / /workspace rw - 9p none rw,trans=fd,rfdno=55", False),
        ("43 34 0:41 / /workspace rw - virtiofs none rw", False),
        ("43 34 0:41 / /tmp rw - tmpfs none rw", False),
    ],
)
def test_whose_filesystem_the_workspace_is(mount: str, own: bool) -> None:
    assert space.is_own(["1 0 0:1 / / ro - overlay overlay ro\n", f"{mount}\n"], "/workspace") is own


def test_installations() -> None:
    pip = ["python", "-m", "pip", "install"]
    assert installation(pip, PackagesInstall("i", ["a", "b==1"])) == [*pip, "a", "b==1"]
    assert installation(pip, PackagesInstall("i", ["a"], manager="pip")) == [*pip, "a"]
    assert installation(pip, PackagesInstall("i", ["a"], manager="npm")) == ["npm", "install", "a"]


def test_the_image_says_what_it_has(tmp_path: Path) -> None:
    document = {"name": "n", "token": "5e" * 32, "listen": {"port": 1}, "env": {"B": "given", "C": "given"}}
    runtime = {
        "kernels": [{"language": "python", "argv": ["/python"], "template": True}],
        "packageManager": ["/pip"],
        "env": {"A": "image", "B": "image"},
        "folders": ["/home"],
    }
    file = tmp_path / "runtime.json"
    with pytest.raises(ValueError, match=r"names no kernels, and .*runtime.json cannot be read"):
        checked(json.dumps(document).encode(), str(file))
    file.write_text(json.dumps(runtime))
    config = checked(json.dumps(document).encode(), str(file))
    assert [kind.argv for kind in config.kernels] == [["/python"]]
    assert (config.package_manager, config.folders) == (["/pip"], ["/home"])
    assert config.env == {"A": "image", "B": "given", "C": "given"}
    own = {**document, "kernels": [{"language": "r", "argv": ["R"]}]}
    assert checked(json.dumps(own).encode(), str(file)).env == document["env"]
    file.write_text("{}")
    with pytest.raises(ValueError, match="kernels"):
        checked(json.dumps(document).encode(), str(file))


@pytest.mark.parametrize(
    ("text", "parts"), [("10.0.0.1:443", ("10.0.0.1", 443)), ("[fd00::1]:80", ("fd00::1", 80))]
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert host_and_port(text) == parts
    for wrong in ("", ":1", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "a.b:1", "10.0.0.1:²"):
        with pytest.raises(ValueError, match=r".+"):
            host_and_port(wrong)


def test_durations() -> None:
    assert validation.duration(None, "x") is None
    assert validation.duration(0.5, "x") == 0.5
    for wrong in (0, -1, float("nan"), float("inf"), 1e12):
        with pytest.raises(AgentError):
            validation.duration(wrong, "x")
