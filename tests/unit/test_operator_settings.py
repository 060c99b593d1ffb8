"""The operator's configuration file: what is wrong in it is said, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsafespace_kube.resources.settings import SettingsError, load, read_key
from llmsafespace_operator.app import main

LEAST = """
systemNamespace: llmsafespace
keyFile: /etc/llmsafespace/keys/key
gatewayUrl: https://sandboxes.example.org
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_three_settings_are_enough(tmp_path: Path) -> None:
    settings = load(written(tmp_path, LEAST))
    assert settings.sandbox_namespaces == {"agent-sandboxes": "default"}
    assert settings.pool_namespaces == ["warm-pools"]
    assert settings.egress_proxy == ""
    assert settings.sandbox_retention == 300


def test_json_is_read_too(tmp_path: Path) -> None:
    text = (
        '{"systemNamespace": "s", "keyFile": "k", "gatewayUrl": "http://g", "egressProxy": "10.96.0.9:3128"}'
    )
    assert load(written(tmp_path, text)).egress_proxy == "10.96.0.9:3128"


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("httpPort: many", "`$.httpPort`"),
        ("httpPort: 70000", "`$.httpPort`"),
        ("colour: red", "unknown field `colour`"),
        ("egressProxy: proxy.example.org:3128", "`$.egressProxy`"),
        ("canaries: ['10.0.0.1']", "`$.canaries[0]`"),
        ("imagePullPolicy: Sometimes", "`$.imagePullPolicy`"),
        ("sandboxNamespaces: {}", "at least one namespace is needed - at `$.sandboxNamespaces`"),
        ("poolNamespaces: []", "at least one namespace is needed - at `$.poolNamespaces`"),
        ("agent: {parked: 0}", "`$.agent.parked`"),
        ("a: [", "line"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, addition: str, words: str) -> None:
    path = written(tmp_path, LEAST + addition)
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_setting_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(SettingsError, match="keyFile"):
        load(written(tmp_path, "systemNamespace: s"))


def test_key_is_read_without_its_line_end_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k" * 32 + "\n")
    assert read_key(str(path)) == b"k" * 32
    path.write_text("tooshort\n")
    with pytest.raises(SettingsError, match="at least 32 bytes") as caught:
        read_key(str(path))
    assert "tooshort" not in str(caught.value)
    with pytest.raises(SettingsError, match="No such file"):
        read_key(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
        (
            ["--config", "/nowhere.yaml", "--egress-proxy", ":3128"],
            "must be an address with a port, such as 10.96.0.7:3128, got ':3128'",
        ),
        ([], "--config"),
    ],
)
def test_command_says_what_is_wrong_with_it(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["llmsafespace-operator", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert words in f"{caught.value}{capsys.readouterr().err}"
