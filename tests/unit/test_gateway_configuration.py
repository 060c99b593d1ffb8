"""A configuration that is wrong ends the gateway with one line that names the value.

The exit status is 2 when it is the command line that is wrong, else 1.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway import configuration
from llmsafespace_gateway.app import GatewayApp
from llmsafespace_gateway.errors import ApiError


def process(folder: Path, *options: str, status: int = 1) -> str:
    """The one line of a real process."""
    command = [sys.executable, "-m", "llmsafespace_gateway", *options]
    command += [] if "--data-dir" in options else ["--data-dir", str(folder / "data")]
    command += [] if "--port" in options else ["--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == status, done.stdout + done.stderr
    assert "lsp_" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert not (folder / "data" / "db.sqlite").exists()
    return line


def refused(*options: str) -> str:
    """The message for these options, in this process."""
    app = GatewayApp()

    def take() -> None:
        configuration.load(app, list(options), GatewayApp)
        configuration.check(app)

    with pytest.raises(ApiError) as caught:
        take()
    return caught.value.message


def config(folder: Path, document: Any, name: str = "config.json") -> str:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


# -- by a process, one of each kind --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config", "none.json"], "none.json"),
        (["--database-url", "nonsense"], "--database-url"),
        (["--database-url", "oracle9://x"], "--database-url"),
        (["--database-url", "postgresql://nobody@127.0.0.1:1/none"], "database cannot be opened"),
        (["--database-url", "sqlite:////no/such/folder/db"], "/no/such/folder/db"),
        (["--ip", "203.0.113.77"], "203.0.113.77"),
        (["--ip", "not an address"], "not an address"),
        (["--data-dir", "/proc/nothing"], "/proc/nothing"),
        (["--trusted-proxies", "10.0.0.0/8,proxy.example"], "proxy.example"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_process_says_it_in_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    line = process(tmp_path, *options)
    assert words in line
    assert "Traceback" not in line


def test_a_wrong_command_line_is_status_2(tmp_path: Path) -> None:
    assert "rate_limit" in process(tmp_path, "--GatewayApp.rate_limit=fast", status=2)


def test_an_option_that_nobody_knows_is_one_line_too(tmp_path: Path) -> None:
    path = config(tmp_path, {"GatewayApp": {"quota": {}}})
    assert "GatewayApp.quota; did you mean quotas?" in process(tmp_path, "--config", path)


def test_machines_read_it_as_json(tmp_path: Path) -> None:
    line = process(tmp_path, "--backend", "kubernetes")
    assert json.loads(line)["level"] == "critical"
    assert "--kubernetes-settings" in json.loads(line)["message"]


# -- the values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"warm_pool": []}, r"GatewayApp\.warm_pool; did you mean warm_pools\?"),
        ({"nonsense": 1}, r"GatewayApp\.nonsense; --help-all"),
        ({"port": "8080x"}, "port"),
        ({"port": 70000}, "port 70000"),
        ({"port": -1}, "port -1"),
        ({"rate_limit": "fast"}, "rate_limit"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"rate_burst": 0}, "rate_burst"),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"max_connections": -5}, "max_connections"),
        ({"head_timeout": 0}, "head_timeout"),
        ({"backend": "docker9"}, "backend"),
        ({"quotas": {"cpu": "lots"}}, "quotas.*cpu"),
        ({"quotas": {"cpus": 3}}, "quotas.*cpus"),
        ({"quotas": []}, "quotas"),
        ({"warm_pools": "python"}, "warm_pools"),
        ({"warm_pools": [{"name": "p"}]}, r"warm_pools\[0\].*runtime"),
        ({"warm_pools": [{"name": "p", "runtime": "python", "minsize": 2}]}, r"warm_pools\[0\].*minsize"),
        (
            {"warm_pools": [{"name": "p", "runtime": "python", "minSize": 3, "maxSize": 1}]},
            r"warm_pools\[0\].*Size",
        ),
        ({"warm_pools": ["python"]}, "warm_pools"),
        ({"trusted_proxies": ["10.0.0.0/99"]}, r"10\.0\.0\.0/99"),
        ({"runtime_packages": [1]}, "runtime_packages"),
        ({"embedded": True}, "--embedded needs --socket"),
        ({"socket": "/" + "x" * 200}, "107 bytes"),
        ({"insecure_no_isolation": True, "ip": "0.0.0.0"}, "loopback"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_a_value_that_is_wrong_is_named(tmp_path: Path, section: dict[str, Any], words: str) -> None:
    assert re.search(words, refused("--config", config(tmp_path, {"GatewayApp": section})))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "not JSON"),
        ("[]", "write an object"),
        ({"GatwayApp": {}}, "did you mean GatewayApp"),
        ({"warm_pools": []}, "belongs into the section"),
        ({"GatewayApp": 3}, "must be an object"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, document: Any, words: str) -> None:
    told = refused("--config", config(tmp_path, document))
    assert words in told
    assert "config.json" in told


def test_a_python_file_that_fails_is_named(tmp_path: Path) -> None:
    told = refused("--config", config(tmp_path, "c.GatewayApp.port = 1 / 0", "config.py"))
    assert "ZeroDivisionError" in told
    assert "config.py" in told
    assert "GatewayApp.prot" in refused("--config", config(tmp_path, "c.GatewayApp.prot = 1", "other.py"))


def test_a_right_one_is_taken(tmp_path: Path) -> None:
    pool = {"name": "p", "runtime": "python", "minSize": 1, "maxSize": 2}
    path = config(tmp_path, {"GatewayApp": {"warm_pools": [pool], "port": 1, "quotas": {"cpu": 2}}})
    app = GatewayApp()
    configuration.load(
        app, ["--config", path, "--port", "8081", "--trusted-proxies", "10.0.0.0/8, 192.0.2.7"], GatewayApp
    )
    configuration.check(app)
    assert app.port == 8081  # the command line wins
    assert app.warm_pools == [pool]
    assert app.trusted_proxies == ["10.0.0.0/8", "192.0.2.7"]
