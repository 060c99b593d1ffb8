"""The parts of the kernel provisioner that decide without a sandbox."""

from __future__ import annotations

import json
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
