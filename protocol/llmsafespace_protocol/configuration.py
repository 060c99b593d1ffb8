"""How an agent is told what it is: one JSON document on standard input (or a file), read once at start."""

from __future__ import annotations

import ipaddress

import msgspec

from llmsafespace_protocol.requests import Fixed, Message

# How an agent says why its sandbox ends: its exit status. Any other status means that it failed.
EXIT_STATUS = {"terminated": 0, "expired": 10, "oom": 11}
RUNTIME_FILE = "/opt/llmsafespace/runtime.json"  # of a runtime image; ImageRuntime describes it


class Listen(Message):
    """A `unix` socket path, or `host` and `port` (TLS, with a certificate of its own).

    `fd` is an inherited descriptor of a listening unix socket, used instead of making one at `unix`: no
    folder of the host needs to be writable in the sandbox then. The agent takes it over, non-inheritable.
    """

    unix: str | None = None
    fd: int | None = None
    host: str = "0.0.0.0"  # noqa: S104  # a pod's own network namespace
    port: int | None = None


class KernelKind(Message):
    """How kernels of one language start.

    `template` true: forked from a preloaded template process (Python only); `argv` is then the
    interpreter with its options. Otherwise `argv` starts one kernel, with `{connection_file}` filled in.
    """

    language: str
    argv: list[str]
    display_name: str = ""
    template: bool = False
    env: dict[str, str] = {}
    interrupt_mode: str = "signal"


class Script(Message):
    """A preload script of a warm pool."""

    name: str
    content: str


class EgressForward(Message):
    """The agent listens on this loopback port and forwards to the egress proxy.

    The proxy is behind the `unix` socket, or, where `proxy` ("ip:port") is set, behind TCP: there each
    connection begins with the token that bind brings (see preamble.py), and none is made before.
    """

    port: int = 3128
    unix: str = "/run/llmsafespace/egress/proxy.sock"
    proxy: str | None = None


class SandboxLimits(Fixed, frozen=True):
    """What the agent's watchdog enforces; `cgroup` is a readable cgroup folder that tells of OOM kills.

    It is the memory cgroup itself, or (version 1) the folder in which all controllers are mounted.
    `nice` is how far the code gives way to its agent, where they share the processor with nothing in between.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    cgroup: str | None = None
    nice: int = 0


class ImageRuntime(Message):
    """What a runtime image says about itself, in RUNTIME_FILE: the parts of AgentConfig that are its own."""

    kernels: list[KernelKind]
    package_manager: list[str]
    env: dict[str, str] = {}
    folders: list[str] = []


class AgentConfig(Message):
    """What an agent needs before bind. `token` is hex, known to this sandbox and the gateway only."""

    name: str
    token: str
    listen: Listen
    kernels: list[KernelKind] = []  # the first is the default; none: those of the image, see RUNTIME_FILE
    ready_port: int | None = None  # accepts TCP connections once a kernel is parked; says nothing
    canaries: list[str] = []  # "ip:port" each; nothing is served before all of them are out of reach
    folders: list[str] = []  # made at start, where they are missing
    parked: int = 1  # parked kernels kept ahead of need
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
    max_lifetime: float = 86400.0  # until bind sets another; counts from the agent's start
    worker: int | None = None  # an inherited socket to the worker in the code's own sandbox; None: no such
    clock: int | None = None  # an inherited pipe to a clock outside the sandbox, see deadlines.py


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "ip:port" or "[ip]:port". Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no ip:port")
    return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
