"""Kernelspec names, and what each means: a runtime and a language. Pure but for reading the resources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services.types import Runtime

DEFAULT = "python3"
RESOURCES = Path(__file__).resolve().parent / "kernelspecs"
_PYTHON = re.compile(r"python(?P<version>\d(?:\.\d{1,3})?)")
_FILE = re.compile(r"(?:logo-[\w.-]+|kernel\.(?:js|css))")


class NamedKernel(msgspec.Struct, frozen=True):
    """What a kernel name stands for. `language` None is the runtime's own."""

    name: str
    runtime: str
    language: str | None = None


class Spec(msgspec.Struct, frozen=True):
    """One kernelspec of the list."""

    name: str
    language: str
    display_name: str


def specs(runtimes: Sequence[Runtime]) -> dict[str, Spec]:
    """The kernelspecs that `runtimes` serve: `python3`, one per Python version, one per other language."""
    found: dict[str, Spec] = {}
    for runtime in runtimes:
        if not runtime.available:
            continue
        if runtime.language == "python":
            found.setdefault(DEFAULT, Spec(DEFAULT, "python", "Python 3"))
            name = f"python{'.'.join(runtime.version.split('.')[:2])}"
            found[name] = Spec(name, "python", runtime.display_name)
        else:
            found.setdefault(runtime.language, Spec(runtime.language, runtime.language, runtime.display_name))
        for language in runtime.languages:
            if language != "python":
                found.setdefault(language, Spec(language, language, language.capitalize()))
    return found


def resolve(name: str | None, runtimes: Sequence[Runtime], default_runtime: str) -> NamedKernel:
    """The runtime for a kernel name; no name is the default kernel.

    A Python version that is not there is left to the backend, which serves the nearest one with a warning.
    Raises ApiError(invalid_request) naming the kernels that are there.
    """
    name = name or DEFAULT
    python = _PYTHON.fullmatch(name)
    if python is not None and python["version"].startswith("3"):
        version = python["version"]
        return NamedKernel(name, default_runtime if version == "3" else f"python:{version}", "python")
    known = specs(runtimes)
    if name not in known:
        raise ApiError(
            "invalid_request",
            f"there is no kernel named {name[:80]!r}; there are: {', '.join(known)}",
            {"kernelspecs": list(known)},
        )
    language = known[name].language
    # A further language of the default runtime starts in one of its warm sandboxes.
    if any(serves(runtime, default_runtime) and language in runtime.languages for runtime in runtimes):
        return NamedKernel(name, default_runtime, language)
    named = next(runtime.id for runtime in runtimes if language in runtime.languages)
    return NamedKernel(name, named, language)


def serves(runtime: Runtime, wanted: str) -> bool:
    """True when `wanted` (`python`, `python:3.11`, `bash`) may be served by `runtime`."""
    return runtime.available and (runtime.id == wanted or runtime.id.partition(":")[0] == wanted)


def model(spec: Spec) -> dict[str, Any]:
    """The kernelspec as Jupyter's API has it."""
    folder = _folder(spec.name, spec.language)
    described = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "env": {},
        "display_name": spec.display_name,
        "language": spec.language,
        "interrupt_mode": "signal",
        "metadata": {"debugger": False},
    }
    if folder is not None:
        described |= _kernel_json(folder) | {"display_name": spec.display_name}
    resources = {
        Path(file).stem if file.startswith("logo-") else file: f"/kernelspecs/{spec.name}/{file}"
        for file in _files(folder)
    }
    return {"name": spec.name, "spec": described, "resources": resources}


def resource(spec: Spec, file: str) -> Path | None:
    """The resource file of a kernelspec; None for every name that is not one of its resources."""
    folder = _folder(spec.name, spec.language)
    return folder / file if folder is not None and file in _files(folder) else None


@cache
def _folder(name: str, language: str) -> Path | None:
    candidates = (name, language, f"{language}3")
    return next((RESOURCES / each for each in candidates if (RESOURCES / each).is_dir()), None)


@cache
def _files(folder: Path | None) -> tuple[str, ...]:
    if folder is None:
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if _FILE.fullmatch(path.name)))


@cache
def _kernel_json(folder: Path) -> dict[str, Any]:
    path = folder / "kernel.json"
    if not path.is_file():
        return {}
    described = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    # How it starts where `jupyter kernelspec install` puts it concerns no kernel of this gateway.
    described.get("metadata", {}).pop("kernel_provisioner", None)
    return described | {"argv": ["python"]}
