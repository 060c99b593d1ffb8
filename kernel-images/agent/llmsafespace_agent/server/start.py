"""From the configuration to a running agent; the kernels' template starts before the rest is imported."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import msgspec

from llmsafespace_agent.inside.own import OwnProcesses
from llmsafespace_agent.inside.remote import RemoteProcesses
from llmsafespace_agent.kernels.factory import Kernels
from llmsafespace_protocol.configuration import RUNTIME_FILE, AgentConfig, ImageRuntime, host_and_port

FAILED = 1
BAD_CONFIGURATION = 2
_SHORTEST_TOKEN = 16  # bytes


def run(document: bytes) -> int:
    """Run an agent as the JSON `document` says; returns its exit code."""
    try:
        config = checked(document)
    except ValueError as error:
        print(f"the configuration is wrong: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    pending: int | None = None
    if config.listen.port is not None:
        from llmsafespace_agent.server import certificate

        pending = certificate.begin()
    return asyncio.run(_serve(config, pending))


def checked(document: bytes, runtime_file: str = RUNTIME_FILE) -> AgentConfig:
    """The configuration. Raises ValueError that says what is wrong with it."""
    config = msgspec.json.decode(document, type=AgentConfig)
    if not config.kernels:
        config = of_image(config, runtime_file)
    listen = config.listen
    if sum(way is not None for way in (listen.unix, listen.fd, listen.port)) != 1:
        raise ValueError("listen must name one of unix, fd and port")
    if not config.kernels:
        raise ValueError("kernels must name at least one kernel")
    if len(bytes.fromhex(config.token)) < _SHORTEST_TOKEN:
        raise ValueError(f"token must have at least {_SHORTEST_TOKEN} bytes, in hex")
    if not config.max_lifetime > 0:
        raise ValueError("maxLifetime must be above 0")
    proxy = config.egress.proxy if config.egress is not None else None
    for address in (*config.canaries, *([proxy] if proxy is not None else [])):
        host_and_port(address)
    return config


def of_image(config: AgentConfig, runtime_file: str) -> AgentConfig:
    """`config` with the image's own kernels, and its environment below the one of `config`.

    Raises ValueError when the image does not describe its kernels.
    """
    try:
        with open(runtime_file, "rb") as file:
            runtime = msgspec.json.decode(file.read(), type=ImageRuntime)
    except OSError as error:
        raise ValueError(
            f"it names no kernels, and {runtime_file} cannot be read: {error.strerror}"
        ) from error
    return msgspec.structs.replace(
        config,
        kernels=runtime.kernels,
        package_manager=runtime.package_manager,
        env={**runtime.env, **config.env},
        folders=[*runtime.folders, *config.folders],
    )


async def _serve(config: AgentConfig, pending: int | None) -> int:
    loop = asyncio.get_running_loop()
    own = OwnProcesses(config.limits.nice, config.workspace)
    own.start(loop)  # of no use beside a worker, but for the dead that come to process 1
    inside = RemoteProcesses(config.worker) if config.worker is not None else own
    kernels = Kernels(config, inside)
    try:
        if isinstance(inside, RemoteProcesses):
            port = config.egress.port if config.egress is not None else 0
            await inside.start(config.limits.nice, port, config.workspace)
        await kernels.start()
    except OSError as error:
        print(f"the agent cannot serve: {error}", file=sys.stderr)
        return FAILED
    for _ in range(3):
        await asyncio.sleep(0)  # the launch happens in these turns; what follows may take its time
    from llmsafespace_agent.server.agent import Agent

    agent = Agent(config, kernels, inside)
    if isinstance(inside, RemoteProcesses):
        inside.on_end = agent.lost_inside
    if os.getpid() != 1:
        # As the first process of a pid namespace it is beyond every signal that code in it can send, as long
        # as it handles none. Who runs the sandbox ends it by a request, or by SIGKILL from outside.
        loop.add_signal_handler(signal.SIGTERM, agent.end, "terminated", "The sandbox was terminated.")
    try:
        return await agent.run(pending)
    except (OSError, RuntimeError) as error:
        print(f"the agent cannot serve: {error}", file=sys.stderr)
        await kernels.close()
        return FAILED
