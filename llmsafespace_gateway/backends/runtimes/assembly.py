"""Putting a prepared runtime together: what is bound where, its environment and its kernels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from llmsafespace_gateway.backends.runtimes.discovery import Interpreter
from llmsafespace_gateway.backends.runtimes.preparation import inside_path, site_packages
from llmsafespace_gateway.backends.runtimes.prepared import (
    AGENT,
    AGENT_PYTHON,
    CA_FILE,
    HOME,
    PIP_CONF,
    PROXY,
    PYTHON,
    RUNTIME,
    HostView,
    PreparedRuntime,
)
from llmsafespace_protocol.configuration import KernelKind

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/local/lib", "/lib")
_NO_PROXY = "localhost,127.0.0.1,::1"


class Names(msgspec.Struct, frozen=True):
    """How a runtime is called."""

    id: str
    version: str
    display_name: str
    languages: tuple[str, ...]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces on the host that a runtime is put together from."""

    folder: Path  # of the prepared environment
    agent: Path
    pip_conf: Path
    ca_file: str | None
    packages: tuple[str, ...]
    bash: str | None  # its version


def names(language: str, interpreter: Interpreter, bash: str | None) -> Names:
    """The names of the runtime whose default kernel speaks `language`."""
    if language == "bash":
        return Names("bash", bash or "", "Bash", ("bash", "python"))
    title = f"Python {interpreter.minor}"
    languages = ("python", "bash") if bash else ("python",)
    return Names(f"python:{interpreter.minor}", interpreter.version, title, languages)


def assemble(language: str, interpreter: Interpreter, own: Interpreter, parts: Parts) -> PreparedRuntime:
    """The runtime whose default kernel speaks `language`, on `interpreter`, with its agent on `own`."""
    called = names(language, interpreter, parts.bash)
    python = f"{RUNTIME}/bin/python"
    binds = _binds(interpreter, own, parts)
    user_site = f"{HOME}/.local/lib/python{interpreter.minor}/site-packages"
    return PreparedRuntime(
        id=called.id,
        language=language,
        version=called.version,
        display_name=called.display_name,
        languages=called.languages,
        binds=binds,
        masks=_masks(interpreter, own, binds),
        folders=(f"{HOME}/.local/bin", user_site),
        env=_env(parts),
        kernels=_kernels(called.languages, python),
        agent_argv=(inside_path(own, own.path, AGENT_PYTHON), "-I", "-S", AGENT),
        package_manager=_package_manager(python),
        packages=parts.packages,
        host=_host_view(called, own, parts),
    )


def _binds(interpreter: Interpreter, own: Interpreter, parts: Parts) -> tuple[tuple[str, str], ...]:
    """Interpreters first: the packages are bound over the base interpreter's own.

    So the runtime's Python is no venv but a plain Python whose packages are read-only: pip then installs into
    the user's site-packages, which come first on sys.path, so that upgrades work as well.
    """
    binds: dict[str, str] = {}
    for root, python in ((PYTHON, interpreter), (AGENT_PYTHON, own)):
        if not python.provided:
            binds[root] = python.prefix
        for library in python.libraries:
            if not library.startswith(_SYSTEM_LIBRARIES):  # found by its absolute path, wherever that is
                binds[library] = library
    binds[inside_path(interpreter, interpreter.sites[0], PYTHON)] = str(
        site_packages(parts.folder, interpreter)
    )
    binds[f"{RUNTIME}/bin"] = str(parts.folder / "bin")
    binds[AGENT] = str(parts.agent)
    binds[PIP_CONF] = str(parts.pip_conf)
    if parts.ca_file is not None:
        binds[CA_FILE] = os.path.realpath(parts.ca_file)
    return tuple((host, inside) for inside, host in binds.items())


def _masks(interpreter: Interpreter, own: Interpreter, binds: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The host's own packages, of both interpreters."""
    sites = [inside_path(interpreter, site, PYTHON) for site in interpreter.sites]
    sites += [inside_path(own, site, AGENT_PYTHON) for site in own.sites]
    bound = {inside for _, inside in binds}
    return tuple(site for site in dict.fromkeys(sites) if site not in bound)


def _env(parts: Parts) -> dict[str, str]:
    env = {
        "HOME": HOME,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "SHELL": "/bin/bash",
        "PATH": f"{HOME}/.local/bin:{RUNTIME}/bin:{SYSTEM_PATH}",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "TMPDIR": "/tmp",  # noqa: S108  # the sandbox's own
        "PIP_CONFIG_FILE": PIP_CONF,
    }
    for name in ("http_proxy", "https_proxy"):
        env[name] = env[name.upper()] = PROXY
    env["no_proxy"] = env["NO_PROXY"] = _NO_PROXY
    if parts.ca_file is not None:
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            env[name] = CA_FILE
    return env


def _kernels(languages: tuple[str, ...], python: str) -> tuple[KernelKind, ...]:
    """All are forked from the same template: our Bash kernel is written in Python."""
    titles = {"python": "Python", "bash": "Bash"}
    return tuple(
        KernelKind(language=language, argv=[python], display_name=titles[language], template=True)
        for language in languages
    )


def _package_manager(python: str) -> tuple[str, ...]:
    return (python, "-m", "pip", "install", "--no-input", "--progress-bar", "off")


def _host_view(called: Names, own: Interpreter, parts: Parts) -> HostView:
    programs = parts.folder / "venv" / "bin"
    python = str(programs / "python")
    return HostView(
        env={
            "PATH": f"{programs}:{SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
        },
        kernels=_kernels(called.languages, python),
        agent_argv=(own.path, "-I", "-S", str(parts.agent)),
        package_manager=_package_manager(python),
    )


def write_once(folder: Path, name: str, content: str) -> Path:
    """A file of this content; its name carries a digest, since living sandboxes keep the one they got."""
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    path = folder / f"{digest}-{name}"
    if not path.exists():
        staging = folder / f".{path.name}.{os.getpid()}"
        staging.write_text(content)
        staging.chmod(0o644)
        staging.rename(path)
    return path
