"""The peers: Jupyter Kernel Gateway beside us, Jupyter Enterprise Gateway in an environment of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from benchmarks.targets import HttpTarget, free_port

START = 60.0  # seconds


class JupyterPeer(HttpTarget):
    """A gateway of Jupyter's that is started with a token and a port."""

    env: dict[str, str] = {}

    def command(self, port: int) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start and wait until it answers."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        process = self._spawn(self.command(port), self.env)
        async with asyncio.timeout(START):
            while True:
                try:
                    await self.http.get(f"{self.url}/api", headers=self.headers)
                    return
                except httpx.HTTPError:
                    if process.poll() is not None:
                        said = process.stdout.read() if process.stdout is not None else ""
                        raise RuntimeError(f"{self.name} ended at its start: {said[-300:]}") from None
                    await asyncio.sleep(0.05)


class KernelGateway(JupyterPeer):
    """Jupyter Kernel Gateway as it comes."""

    name = "kernel gateway"

    def command(self, port: int) -> list[str]:
        """Its module, with a token."""
        command = [sys.executable, "-m", "kernel_gateway", f"--port={port}", "--ip=127.0.0.1"]
        return [*command, f"--KernelGatewayApp.auth_token={self.key}", "--log-level=ERROR"]


PINS = (
    "jupyter_enterprise_gateway==3.3.0",
    "jupyter_client<7",
    "ipykernel<6.30",
    "pyzmq<25",
    "setuptools<81",
)
PYTHONS = ("python3.11", "python3.10")


class EnterpriseGateway(JupyterPeer):
    """Jupyter Enterprise Gateway, which needs older packages than ours: an environment in `folder`.

    `missing` says why it is left out, where its Python is not there or its packages cannot be installed.
    """

    name = "enterprise gateway"
    env = {"EG_UNAUTHORIZED_USERS": "nobody-is-root"}  # it starts no kernel for root otherwise

    def __init__(self, folder: Path, orjson: bool) -> None:
        super().__init__()
        self._python = folder / "bin" / "python"
        pins = (*PINS, "orjson") if orjson else PINS
        base = next((found for name in PYTHONS if (found := shutil.which(name))), None)
        if sys.version_info[:2] in ((3, 10), (3, 11)):
            base = base or sys.executable
        if base is None:
            self.missing = f"it needs one of {' or '.join(PYTHONS)}"
            return
        done = folder / "installed"
        if done.exists() and done.read_text() == str(pins):
            return
        try:
            subprocess.run([base, "-m", "venv", "--clear", folder], check=True, capture_output=True)
            install = [self._python, "-m", "pip", "install", "-q", *pins]
            subprocess.run(install, check=True, capture_output=True, text=True)
            done.write_text(str(pins))
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").splitlines()[-1:] or ["pip failed"]
            self.missing = f"its environment cannot be made: {said[0]!s}"

    def command(self, port: int) -> list[str]:
        """Its module, with a token; its own environment's kernels."""
        command = [str(self._python), "-m", "enterprise_gateway", f"--port={port}", "--ip=127.0.0.1"]
        return [*command, f"--EnterpriseGatewayApp.auth_token={self.key}", "--log-level=ERROR"]


def without_orjson(folder: Path) -> dict[str, str]:
    """An environment in which jupyter_client finds no orjson, where our own runtime has none either."""
    folder.mkdir(exist_ok=True)
    (folder / "orjson.py").write_text("raise ModuleNotFoundError('all kernels serialize alike')\n")
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
