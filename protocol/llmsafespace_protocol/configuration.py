"""The agent's configuration: one JSON document on standard input (or in a file), read once at start."""

from __future__ import annotations

import ipaddress

import msgspec

from llmsafespace_protocol.requests import Fixed, Message

# The agent's exit status says why the sandbox ended. Any other status means that the agent failed.
EXIT_STATUS = {"terminated": 0, "expired": 10, "oom": 11}
RUNTIME_FILE = "/opt/llmsafespace/runtime.json"  # in a runtime image; its content is an ImageRuntime


class Listen(Message):
    """Where the agent listens: a `unix` socket path, or `host` and `port` (TLS, a certificate of its own).

    `fd` is an inherited descriptor of a unix socket that already listens. The agent uses it instead of
    creating `unix`, so that the sandbox needs no writable folder of the host, and makes it non-inheritable.
    """

    unix: str | None = None
    fd: int | None = None
    host: str = "0.0.0.0"  # noqa: S104  # a pod's own network namespace
    port: int | None = None


class KernelKind(Message):
    """How to start kernels of one language.

    With `template` true, kernels are forked from a preloaded template process (Python only) and `argv` is
    the interpreter with its options. Otherwise `argv` starts one kernel; `{connection_file}` in it is
    replaced by the path of the connection file.
    """

    language: str
    argv: list[str]
    display_name: str = ""
    template: bool = False
    env: dict[str, str] = {}
    interrupt_mode: str = "signal"


class Script(Message):
    """A preload script of a warm pool: Python source that runs once, before the sandbox is bound."""

    name: str
    content: str


class EgressForward(Message):
    """The agent listens on the loopback port `port` and forwards connections to the egress proxy.

    It reaches the proxy through the `unix` socket, or, if `proxy` ("ip:port") is set, over TCP. A TCP
    connection begins with the egress token (see egress.py). The agent receives the token with bind and
    connects to the proxy only after that.
    """

    port: int = 3128
    unix: str = "/run/llmsafespace/egress/proxy.sock"
    proxy: str | None = None


class SandboxLimits(Fixed, frozen=True):
    """Limits that the agent's watchdog enforces.

    `cgroup` is a readable cgroup folder, in which the agent counts OOM kills: the memory cgroup itself, or
    with cgroup version 1 the folder in which all controllers are mounted.
    `nice` is the niceness of the user's code. It gives the agent priority where both share one CPU group.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    cgroup: str | None = None
    nice: int = 0


class ImageRuntime(Message):
    """The content of RUNTIME_FILE: the parts of AgentConfig that depend on the runtime image."""

    kernels: list[KernelKind]
    package_manager: list[str]
    env: dict[str, str] = {}
    folders: list[str] = []


class AgentConfig(Message):
    """What an agent needs to know before bind. Only this agent and the gateway know `token` (hex)."""

    name: str
    token: str
    listen: Listen
    kernels: list[KernelKind] = []  # the first is the default; if empty, those of the image (RUNTIME_FILE)
    ready_port: int | None = None  # accepts TCP connections once a kernel is parked; sends no data
    canaries: list[str] = []  # "ip:port"; the agent serves nothing while one of these can be reached
    folders: list[str] = []  # created at start if they are missing
    parked: int = 1  # number of kernels that are kept parked
    preload_packages: list[str] = []
    preload_scripts: list[Script] = []
    env: dict[str, str] = {}  # the base environment of kernels and commands
    workspace: str = "/workspace"
    run_dir: str = "/run/llmsafespace"  # ipc sockets, connection files, journal spill
    journal_memory: int = 8 * 1024 * 1024
    journal_disk: int = 256 * 1024 * 1024
    egress: EgressForward | None = None
    limits: SandboxLimits = SandboxLimits()
    package_manager: list[str] = msgspec.field(
        default_factory=lambda: ["python", "-m", "pip", "install", "--no-input"]
    )
    max_lifetime: float = 86400.0  # seconds from the agent's start; bind replaces it
    worker: int | None = None  # inherited socket (fd) to the worker in the code's own sandbox; or None
    clock: int | None = None  # inherited pipe (fd) to a clock outside the sandbox, see deadlines.py


def host_and_port(address: str) -> tuple[str, int]:
    """Split "ip:port" or "[ip]:port". Raises ValueError if the address has another form."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"an address must be ip:port, got {address!r}")
    return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
