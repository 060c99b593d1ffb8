"""The folders of kernelspecs/, installed by Jupyter's own command, start kernels in sandboxes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from tests.conftest import Gateway

KERNELSPECS = Path(__file__).parents[2] / "kernelspecs"
CODE = {"python": "print(6 * 7)", "bash": "echo $((6 * 7))"}


def test_there_is_a_case_for_each() -> None:
    assert {folder.name for folder in KERNELSPECS.iterdir()} == set(CODE)


@pytest.mark.parametrize("language", CODE)
def test_it_is_installed_and_runs(
    language: str, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"sandbox-{language}"
    command = [sys.executable, "-m", "jupyter_client.kernelspecapp", "install", str(KERNELSPECS / language)]
    subprocess.run([*command, "--name", name, "--prefix", str(tmp_path)], check=True, capture_output=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("LLMSAFESPACE_API_URL", gateway.url)
    monkeypatch.setenv("LLMSAFESPACE_API_KEY", gateway.admin_key)
    manager, client = start_new_kernel(kernel_name=name)
    try:
        printed: list[str] = []
        reply = client.execute_interactive(
            CODE[language],
            timeout=60,
            output_hook=lambda message: printed.append(message["content"].get("text", "")),
        )
        assert reply["content"]["status"] == "ok"
        assert "".join(printed) == "42\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
