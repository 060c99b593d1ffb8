"""A gateway that cannot serve a cluster says in one line what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_KUBE = (
    "import sys; sys.modules['llmsafespace_kube'] = None; "
    "from llmsafespace_gateway.app import main; main(sys.argv[1:])"
)
SETTINGS = {"systemNamespace": "system", "keyFile": "key", "gatewayUrl": "http://gateway"}


def refusal(folder: Path, *options: str, code: str = "") -> str:
    program = ["-c", code] if code else ["-m", "llmsafespace_gateway"]
    command = [sys.executable, *program, "--data-dir", str(folder), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env={"PATH": ""})
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(SETTINGS))
    return path


def test_settings_are_needed(tmp_path: Path) -> None:
    assert "--backend kubernetes needs --kubernetes-settings FILE" in refusal(
        tmp_path, "--backend", "kubernetes"
    )


def test_warm_pools_are_objects(tmp_path: Path, settings: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"GatewayApp": {"warm_pools": [{"name": "p", "runtime": "python"}]}}))
    options = ("--backend", "kubernetes", "--kubernetes-settings", str(settings), "--config", str(config))
    assert "warm pools are WarmPool objects here" in refusal(tmp_path, *options)


def test_what_is_wrong_with_the_settings_is_told(tmp_path: Path, settings: Path) -> None:
    options = ("--backend", "kubernetes", "--kubernetes-settings")
    assert "none.json: No such file" in refusal(tmp_path, *options, str(tmp_path / "none.json"))
    assert "key: No such file" in refusal(tmp_path, *options, str(settings))
    settings.write_text(json.dumps({**SETTINGS, "keyFiel": "key"}))
    assert "keyFiel" in refusal(tmp_path, *options, str(settings))


def test_packages_that_are_missing_are_named(tmp_path: Path, settings: Path) -> None:
    options = ("--backend", "kubernetes", "--kubernetes-settings", str(settings))
    told = refusal(tmp_path, *options, code=WITHOUT_KUBE)
    assert "llmsafespace_kube" in told
    assert "pip install 'llmsafespace-gateway[kubernetes]'" in told


def test_a_first_key_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "first.key" in refusal(tmp_path, "--first-key-file", str(tmp_path / "first.key"))


def test_the_url_of_the_store_comes_from_a_file(tmp_path: Path) -> None:
    url = tmp_path / "url"
    assert "url: No such file" in refusal(tmp_path, "--database-url-file", str(url))
    url.write_text(f"sqlite:///{tmp_path}/other.sqlite\n")
    file = ("--database-url-file", str(url))
    assert "drop one" in refusal(tmp_path, *file, "--database-url", "sqlite://")
    assert "first.key" in refusal(tmp_path, *file, "--first-key-file", str(tmp_path / "first.key"))
    assert (tmp_path / "other.sqlite").exists()
    assert not (tmp_path / "db.sqlite").exists()
