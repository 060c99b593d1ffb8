"""How an agent is told what it is: one JSON document on standard input (or a file), read once at start."""

from __future__ import annotations

from llmsafespace_agent.wire.requests import Message


class Listen(Message):
    """A `unix` socket path, or `host` and `port` (TLS, with a certificate of its own)."""

    unix: str | None = None
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
    """The agent listens on this loopback port and forwards to the egress proxy's unix socket."""

    port: int = 3128
    unix: str = "/run/llmsafespace/egress/proxy.sock"


class SandboxLimits(Message):
    """What the agent's watchdog enforces; `cgroup` is a readable cgroup folder that tells of OOM kills."""

    memory_bytes: int | None = None
    processes: int | None = None
    cgroup: str | None = None


class AgentConfig(Message):
    """What an agent needs before bind. `token` is hex, known to this sandbox and the gateway only."""

    name: str
    token: str
    listen: Listen
    kernels: list[KernelKind]  # the first is the default
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
    package_manager: list[str] = ["python", "-m", "pip", "install", "--no-input"]
    max_lifetime: float = 86400.0  # until bind sets another; counts from the agent's start
