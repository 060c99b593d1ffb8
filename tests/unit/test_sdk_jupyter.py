"""The parts of the kernel provisioner that decide without a sandbox."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.session import Session

from llmsafespace import channel, cli
from llmsafespace.decoding import decode_object
from llmsafespace.jupyter.bridge import Bridge
from llmsafespace.jupyter.install import kernel_json
from llmsafespace.jupyter.provisioner import portable, sandbox_env
from llmsafespace.jupyter.zmq_messages import Signer, WrongSignature, address


def test_the_signature_is_that_of_jupyter_client() -> None:
    session = Session(key=b"key")
    frames = session.serialize(session.msg("x", {"a": 1}), ident=[b"who"])
    identities, parts = Signer({"key": "key", "signature_scheme": "hmac-sha256"}).unwrap([*frames, b"buffer"])
    assert identities == [b"who"]
    assert parts[-1] == b"buffer"
    ours = Signer({"key": b"key"}).wrap([b"to"], parts)
    _, rest = session.feed_identities([bytes(frame) for frame in ours])
    assert session.deserialize(rest)["content"] == {"a": 1}


@pytest.mark.parametrize(
    "frames", [[], [b"a"], [b"<IDS|MSG>", b"s"], [b"<IDS|MSG>", b"wrong", b"{}", b"{}", b"{}", b"{}"]]
)
def test_other_messages_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(WrongSignature):
        Signer({"key": "key"}).unwrap(frames)


def test_addresses() -> None:
    info = {"transport": "tcp", "ip": "127.0.0.1", "hb_port": 5}
    assert address(info, "hb") == "tcp://127.0.0.1:5"
    assert address({**info, "transport": "ipc", "ip": "/tmp/k"}, "hb") == "ipc:///tmp/k-5"
    assert portable({"key": b"k", "hb_port": 5}) == {"key": "k", "hb_port": 5}


def test_the_applications_environment_stays_outside() -> None:
    own = {"HOME": "/root", "TOKEN": "secret", "MODE": "a"}
    given = {**own, "MODE": "b", "NEW": "1", "JPY_PARENT_PID": "7", "LLMSAFESPACE_API_KEY": "k"}
    assert sandbox_env(given, own) == {"MODE": "b", "NEW": "1"}


def test_install_writes_a_specification_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMSAFESPACE_API_KEY", "lsp_secret")
    monkeypatch.setenv("FROM_HERE", "yes")
    arguments = ["--prefix", str(tmp_path), "--runtime", "python:3.12", "--url", "http://gw", "--name", "sb"]
    assert cli.main(["jupyter", "install", *arguments, "--env", "A=b=c", "--env", "FROM_HERE"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    text = (folder / "kernel.json").read_text()
    assert "lsp_secret" not in text
    document = json.loads(text)
    assert document["env"] == {"A": "b=c", "FROM_HERE": "yes"}
    assert document["display_name"] == "Python 3.12 (sandbox)"
    provisioner = document["metadata"]["kernel_provisioner"]
    assert provisioner["config"] == {"runtime": "python:3.12", "url": "http://gw"}
    manager = KernelSpecManager(kernel_dirs=[str(folder.parent)])
    assert manager.get_kernel_spec("sb").metadata["kernel_provisioner"]["provisioner_name"] == "llmsafespace"


def test_a_bad_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jupyter", "install", "--prefix", str(tmp_path), "--name", "a b"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_what_was_asked_for_is_written_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.csv").write_text("1")
    monkeypatch.chdir(tmp_path)
    options = "--package polars --package altair --file data.csv --file data.csv:/tmp/x --memory 2Gi --cpu 2"
    options += " --storage 4Gi --profile high --warm-pool data --idle-timeout 60 --url localhost:8080/api/v1"
    arguments = ["--prefix", str(tmp_path), "--name", "data", *options.split(), "--env", "TOKEN=secret"]
    assert cli.main(["jupyter", "install", *arguments]) == 0
    told = capsys.readouterr()
    config = json.loads(Path(told.out.strip(), "kernel.json").read_text())["metadata"]["kernel_provisioner"]
    local = str(tmp_path / "data.csv")
    assert config["config"] == {
        "url": "http://localhost:8080",
        "packages": ["polars", "altair"],
        "files": {"data.csv": local, "/tmp/x": local},
        "resources": {"cpu": "2", "memory": "2Gi", "ephemeralStorage": "4Gi"},
        "security_level": "high",
        "warm_pool": "data",
        "idle_timeout": 60.0,
    }
    lines = (
        "packages: polars, altair",
        "memory=2Gi",
        "security level: high",
        f"data.csv={local}",
        "env: TOKEN",
    )
    for words in lines:
        assert words in told.err
    assert "secret" not in told.err


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As ipykernel has them: for the user, in this environment, beneath a prefix."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    places = {("--sys-prefix",): "env/share/jupyter", (): "env/share/jupyter", ("--user",): "user"}
    for options, place in places.items():
        assert cli.main(["jupyter", "install", *options]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / place / "kernels" / "llmsafespace")
    with pytest.raises(SystemExit):
        cli.main(["jupyter", "install", "--user", "--sys-prefix"])


def test_list_and_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only kernels of sandboxes: others are neither shown nor removed."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    for name in ("one", "two"):
        assert cli.main(["jupyter", "install", "--prefix", str(tmp_path), "--name", name]) == 0
    other = tmp_path / "share" / "jupyter" / "kernels" / "other"
    other.mkdir()
    (other / "kernel.json").write_text('{"argv": ["x"], "display_name": "Other", "language": "x"}')
    broken = tmp_path / "share" / "jupyter" / "kernels" / "broken"
    broken.mkdir()
    (broken / "kernel.json").write_text("{")
    capsys.readouterr()
    for place in ([], ["--prefix", str(tmp_path)]):
        assert cli.main(["jupyter", "list", "--json", *place]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {"one", "two"} <= {one["name"] for one in found}
        assert not {"other", "broken", "python3"} & {one["name"] for one in found}
    assert cli.main(["jupyter", "list"]) == 0
    assert f"one  {other.parent / 'one'}" in capsys.readouterr().out
    assert cli.main(["jupyter", "remove", "one", "other", "none", "two"]) == 1
    assert "no sandbox kernel 'other'" in capsys.readouterr().err
    assert sorted(each.name for each in other.parent.iterdir()) == ["broken", "other"]


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["jupyter", "install", "--file", "/none"])
    assert "there is no file /none" in capsys.readouterr().err


def test_other_runtimes() -> None:
    assert kernel_json(runtime="bash")["language"] == "bash"
    assert kernel_json(runtime="bash")["display_name"] == "Bash (sandbox)"
    assert kernel_json()["display_name"] == "Python (sandbox)"
    assert kernel_json()["metadata"]["kernel_provisioner"]["config"] == {}


@pytest.mark.parametrize(
    ("where", "kind", "answers"),
    [
        ("shell", "execute_request", ["error", "execute_reply", "status"]),
        ("control", "debug_request", ["error", "debug_reply", "status"]),
        ("shell", "comm_msg", ["error", "status"]),
    ],
)
async def test_a_message_that_no_gateway_takes_is_answered_here(
    monkeypatch: pytest.MonkeyPatch, where: str, kind: str, answers: list[str]
) -> None:
    """Sent, it would end the connection of everything else that runs."""
    monkeypatch.setattr(channel, "MAX_MESSAGE", 1000)
    bridge = Bridge({}, print)
    header = json.dumps({"msg_id": "m", "msg_type": kind, "session": "s"}).encode()
    await bridge._from_client(where, [header, b"{}", b"{}", b"{}", bytes(1000)])
    told = [bridge._outgoing.get_nowait() for _ in range(bridge._outgoing.qsize())]
    assert [message.header().msg_type for message in told] == answers
    assert [message.parent().msg_id for message in told] == ["m"] * len(told)
    assert [message.channel for message in told] == ["iopub", *[where] * (len(told) - 2), "iopub"]
    assert "too large" in decode_object(told[0].parts[3])["evalue"]
    assert list(bridge.unanswered()) == []
