"""Installs a kernel specification for sandbox kernels."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmsafespace.errors import InvalidRequest, SandboxError

LANGUAGES = {"python": "python", "bash": "bash"}


def kernel_json(
    *,
    runtime: str | None = None,
    display_name: str | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of a kernel.json. It holds no key: that comes from the environment at start."""
    name, _, version = (runtime or "python").partition(":")
    config: dict[str, Any] = {"runtime": runtime} if runtime is not None else {}
    if url is not None:
        config["url"] = url
    return {
        "argv": ["python", "-m", "llmsafespace.jupyter.bridge", "{connection_file}"],
        "display_name": display_name or f"{name.capitalize()} {version} (sandbox)".replace("  ", " "),
        "language": LANGUAGES.get(name, name),
        "interrupt_mode": "signal",
        "env": dict(env or {}),
        "metadata": {"kernel_provisioner": {"provisioner_name": "llmsafespace", "config": config}},
    }


def install(
    *,
    name: str = "llmsafespace",
    display_name: str | None = None,
    runtime: str | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    prefix: str | None = None,
) -> Path:
    """Install the specification for this user, or beneath `prefix`; its folder.

    Raises SandboxError when jupyter_client is not installed, InvalidRequest for a name that is none.
    """
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError as error:
        raise SandboxError("jupyter_client is missing here: pip install 'llmsafespace[jupyter]'") from error
    document = kernel_json(runtime=runtime, display_name=display_name, url=url, env=env)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.json")
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        path.chmod(0o644)
        os.chmod(folder, 0o755)  # noqa: S103  (jupyter_client copies the mode; kernel files are public)
        try:
            manager = KernelSpecManager()
            target = manager.install_kernel_spec(folder, name, user=prefix is None, prefix=prefix)
        except ValueError as error:
            raise InvalidRequest(f"--name: {error}") from error
    return Path(target)


def default_prefix() -> str | None:
    """The environment that this Python belongs to; None outside one, where the user's own folder serves."""
    return sys.prefix if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX") else None
