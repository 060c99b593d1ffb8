"""What a prepared runtime is: everything a backend needs to put it into a sandbox."""

from __future__ import annotations

import msgspec

from llmsafespace_protocol.configuration import KernelKind

RUNTIME = "/opt/runtime"  # its programs are in bin/
PYTHON = "/opt/python"  # the runtime's base interpreter, unless it is the system's
AGENT = "/opt/llmsafespace/agent"  # a folder with __main__.py
WORKER = f"{AGENT}/llmsafespace_agent/inside/worker"  # the same
AGENT_PYTHON = "/opt/llmsafespace/python"  # the agent's own interpreter, unless it is the system's
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
PIP_CONF = "/etc/pip.conf"
HOME = "/home/sandbox"
PROXY = "http://127.0.0.1:3128"


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """The same runtime seen without a sandbox around it (the backend's insecure mode): paths of the host."""

    env: dict[str, str]
    kernels: tuple[KernelKind, ...]
    agent_argv: tuple[str, ...]
    package_manager: tuple[str, ...]


class PreparedRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that is ready to start.

    The backend itself provides the system's programs and libraries (/usr with the interpreters of
    /usr/local/bin, /bin, /lib, /lib64), /proc, /dev, /tmp, the home and the workspace.
    On top of that it makes, in this order: each of `binds`, read-only; an empty tmpfs over each of
    `masks` (folders that exist below a bind or /usr); each of `folders`, writable, in the home.
    """

    id: str  # as python:3.11
    language: str
    version: str  # of the language, as 3.11.7
    display_name: str
    languages: tuple[str, ...]  # the first is the default kernel's
    binds: tuple[tuple[str, str], ...]  # (path on the host, path inside)
    masks: tuple[str, ...]
    folders: tuple[str, ...]
    env: dict[str, str]  # the base environment of kernels and commands
    kernels: tuple[KernelKind, ...]
    agent_argv: tuple[str, ...]
    worker_argv: tuple[
        str, ...
    ] = ()  # followed by the number of its socket; none: the agent is beside the code
    package_manager: tuple[str, ...]  # followed by the names of packages
    packages: tuple[str, ...]  # as name==version
    host: HostView
