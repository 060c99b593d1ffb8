"""Kernel specifications for sandbox kernels: installed, listed, removed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsafespace.errors import InvalidRequest, NotFound, SandboxError

LANGUAGES = {"python": "python", "bash": "bash"}
PROVISIONER = "llmsafespace"


def kernel_json(
    *,
    runtime: str | None = None,
    display_name: str | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a kernel.json. It holds no key: that comes from the environment at start.

    `config` has further settings of SandboxProvisioner; those that are empty are left out.
    """
    name, _, version = (runtime or "python").partition(":")
    settings = {"runtime": runtime, "url": url, **(config or {})}
    return {
        "argv": ["python", "-m", "llmsafespace.jupyter.bridge", "{connection_file}"],
        "display_name": display_name or f"{name.capitalize()} {version} (sandbox)".replace("  ", " "),
        "language": LANGUAGES.get(name, name),
        "interrupt_mode": "signal",
        "env": dict(env or {}),
        "metadata": {
            "kernel_provisioner": {
                "provisioner_name": PROVISIONER,
                "config": {key: value for key, value in settings.items() if value not in (None, [], {})},
            }
        },
    }


def install(
    *,
    name: str = "llmsafespace",
    display_name: str | None = None,
    runtime: str | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    prefix: str | None = None,
) -> Path:
    """Install the specification for this user, or beneath `prefix`; its folder.

    Raises SandboxError when jupyter_client is not installed, InvalidRequest for a name that is none.
    """
    manager = _manager()
    document = kernel_json(runtime=runtime, display_name=display_name, url=url, env=env, config=config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.json")
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        path.chmod(0o644)
        os.chmod(folder, 0o755)  # noqa: S103  (jupyter_client copies the mode; kernel files are public)
        try:
            target = manager.install_kernel_spec(folder, name, user=prefix is None, prefix=prefix)
        except ValueError as error:
            raise InvalidRequest(f"--name: {error}") from error
    return Path(target)


@dataclass(frozen=True)
class Installed:
    """A specification of sandbox kernels that Jupyter finds here."""

    name: str
    folder: Path
    document: Mapping[str, Any]

    @property
    def display_name(self) -> str:
        """What applications show."""
        return str(self.document.get("display_name"))

    @property
    def config(self) -> dict[str, Any]:
        """The settings of its provisioner."""
        return dict(self.document["metadata"]["kernel_provisioner"].get("config") or {})


def installed(prefix: str | None = None) -> list[Installed]:
    """The specifications of sandbox kernels, by name: those that Jupyter finds, or those beneath `prefix`."""
    manager = _manager()
    if prefix is not None:
        manager.kernel_dirs = [str(Path(prefix, "share", "jupyter", "kernels"))]
    found = []
    for name, place in sorted(manager.find_kernel_specs().items()):
        try:
            document = json.loads(Path(place, "kernel.json").read_text(encoding="utf-8"))
            provisioner = document["metadata"]["kernel_provisioner"]["provisioner_name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another kernel's, or none
        if provisioner == PROVISIONER:
            found.append(Installed(name, Path(place), document))
    return found


def remove(name: str, prefix: str | None = None) -> Path:
    """Remove a specification of sandbox kernels; the folder that it was in.

    Raises NotFound where there is none of this name: other kernels are not touched.
    """
    one = next((each for each in installed(prefix) if each.name == name), None)
    if one is None:
        raise NotFound(f"there is no sandbox kernel {name!r} here: `llmsafespace jupyter list` shows them")
    manager = _manager()
    manager.kernel_dirs = [str(one.folder.parent)]
    manager.ensure_native_kernel = False
    return Path(manager.remove_kernel_spec(name))


def default_prefix() -> str | None:
    """The environment that this Python belongs to; None outside one, where the user's own folder serves."""
    return sys.prefix if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX") else None


def _manager() -> Any:
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError as error:
        raise SandboxError("jupyter_client is missing here: pip install 'llmsafespace[jupyter]'") from error
    return KernelSpecManager()
