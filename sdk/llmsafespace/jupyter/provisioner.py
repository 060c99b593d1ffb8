"""A kernel provisioner: for Jupyter, a sandbox's kernel is a local process with a connection file."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from jupyter_client.connect import KernelConnectionInfo, LocalPortCache
from jupyter_client.provisioning import KernelProvisionerBase
from traitlets import Dict, Float, List, Unicode

from llmsafespace import embedded
from llmsafespace.errors import SandboxError
from llmsafespace.jupyter.aside import aside
from llmsafespace.jupyter.process import BridgeProcess
from llmsafespace.settings import explicit_endpoint, require_gateway_package

_PORTS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")
_CALL_TIMEOUT = 90.0  # seconds for an interrupt or a restart: more than a gateway may be away


class SandboxProvisioner(KernelProvisionerBase):
    """Runs kernels in sandboxes. Configured in kernel.json, `metadata.kernel_provisioner.config`.

    The API key comes from LLMSAFESPACE_API_KEY; with no URL and no key anywhere a private gateway is started,
    one for all kernels of the application.
    """

    url = Unicode("", help="The gateway; LLMSAFESPACE_API_URL where it is empty.").tag(config=True)
    runtime = Unicode("", help="The runtime of the sandboxes; empty: the gateway's default.").tag(config=True)
    env = Dict(help="Environment variables of the kernels.").tag(config=True)
    security_level = Unicode("standard", help="standard, high or custom.").tag(config=True)
    warm_pool = Unicode("", help="The warm pool to take sandboxes from; empty: any that fits.").tag(
        config=True
    )
    resources = Dict(help="cpu, memory and ephemeralStorage, as quantities.").tag(config=True)
    packages = List(help="Packages to install before the first cell.").tag(config=True)
    files = Dict(help="Files to copy into each sandbox: its path there, and the path here.").tag(config=True)
    idle_timeout = Float(3600.0, help="Seconds after which a forgotten sandbox ends.").tag(config=True)

    _bridge: BridgeProcess | None = None
    _ports_cached = False

    # -- what the application asks

    @property
    def has_process(self) -> bool:
        """True while a kernel is there."""
        return self._bridge is not None and self._bridge.exit_code is None

    async def poll(self) -> int | None:
        """None while the kernel is there; from memory."""
        return self._bridge.exit_code if self._bridge is not None else 0

    async def wait(self) -> int | None:
        """Wait for the kernel's end; its exit code."""
        bridge = self._bridge
        if bridge is None:
            return 0
        while not await aside(bridge.wait_stopped, 1.0):
            pass
        return bridge.exit_code

    async def send_signal(self, signum: int) -> None:
        """SIGINT interrupts; SIGTERM and SIGKILL end the kernel."""
        if signum == signal.SIGINT:
            await self._interrupt()
        elif signum in (signal.SIGTERM, signal.SIGKILL):
            await self.terminate()

    async def _interrupt(self) -> None:
        if self._bridge is None or not self.has_process:
            return
        try:
            await aside(self._bridge.call, "interrupt", _CALL_TIMEOUT)
        except SandboxError as error:
            self.log.warning("The sandbox could not be interrupted: %s", error)

    async def kill(self, restart: bool = False) -> None:
        """The kernel counts as ended at once. Whether its sandbox ends too, `cleanup` knows."""
        if self._bridge is not None:
            self._bridge.mark_stopped()

    async def terminate(self, restart: bool = False) -> None:
        """As `kill`: nothing in a sandbox needs a polite end."""
        await self.kill(restart)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """The request is on its way to the bridge: wait until it has been carried out."""
        if self._bridge is not None:
            await aside(self._bridge.wait_stopped, 5.0)

    async def cleanup(self, restart: bool = False) -> None:
        """End the sandbox, unless the kernel is about to be started again."""
        if restart:
            return
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            await aside(bridge.end)
        self._return_ports()

    # -- start

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Write the connection file; keep the application's own environment out of the sandbox."""
        kwargs.pop("transport_encryption", None)
        extra = kwargs.pop("extra_arguments", [])
        manager = self.parent
        command = [*self.kernel_spec.argv, *extra]
        if manager is not None:
            self._take_ports(manager)
            manager.write_connection_file()
            self.connection_info = manager.get_connection_info()
            command = manager.format_kernel_cmd(extra_arguments=extra)
        kwargs["env"] = sandbox_env(kwargs.pop("env", {}), os.environ)
        prepared: dict[str, Any] = await super().pre_launch(cmd=command, **kwargs)
        return prepared

    def _take_ports(self, manager: Any) -> None:
        if manager.cache_ports and not self._ports_cached:
            cache = LocalPortCache.instance()
            for name in _PORTS:
                setattr(manager, name, cache.find_available_port(manager.ip))
            self._ports_cached = True

    def _return_ports(self) -> None:
        if self._ports_cached:
            cache = LocalPortCache.instance()
            for name in _PORTS:
                cache.return_port(int(self.connection_info[name]))
            self._ports_cached = False

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """A kernel in a sandbox: in the one that is there, when this is a restart. Raises SandboxError."""
        connection = portable(self.connection_info)
        sandbox_id = None
        if self._bridge is not None:
            if self._bridge.running and self._bridge.connection == connection:
                await aside(self._bridge.restart, _CALL_TIMEOUT)
                return self.connection_info
            sandbox_id = self._bridge.sandbox_id if self._bridge.running else None
            await aside(self._bridge.end, leave=sandbox_id is not None)
        env = {str(name): str(value) for name, value in {**self.env, **kwargs.get("env", {})}.items()}
        self._bridge = await aside(self._start, connection, env, sandbox_id)
        if sandbox_id is not None:
            await aside(self._bridge.restart, _CALL_TIMEOUT)
        return self.connection_info

    def _start(
        self, connection: dict[str, Any], env: dict[str, str], sandbox_id: str | None
    ) -> BridgeProcess:
        """A bridge that is ready; one that is not ends, and its sandbox with it."""
        url, key = gateway(str(self.url))
        sandbox: dict[str, Any] = {
            "runtime": str(self.runtime) or None,
            "env": env,
            "security_level": self.security_level,
            "idle_timeout": self.idle_timeout,
            "metadata": {"jupyter": "provisioner"},
        }
        if self.warm_pool:
            sandbox["warm_pool"] = str(self.warm_pool)
        if self.packages:
            sandbox["packages"] = list(self.packages)
        if self.files:
            sandbox["files"] = {str(path): str(local) for path, local in self.files.items()}
        if self.resources:
            sandbox["resources"] = dict(self.resources)
        bridge = BridgeProcess(
            {"url": url, "key": key, "connection": connection, "sandbox": sandbox, "sandbox_id": sandbox_id}
        )
        try:
            bridge.wait_ready()
        except BaseException:
            bridge.end()
            raise
        return bridge

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What an application may keep about this kernel."""
        info: dict[str, Any] = await super().get_provisioner_info()
        info["sandbox_id"] = self._bridge.sandbox_id if self._bridge is not None else None
        return info


def gateway(url: str) -> tuple[str, str | None]:
    """The URL and key for a bridge; the private gateway's where there are none. Raises SandboxError."""
    endpoint = explicit_endpoint(url or None)
    if endpoint is None:
        require_gateway_package()
        endpoint = embedded.endpoint()
    return (f"unix://{endpoint.socket}" if endpoint.socket else endpoint.url), endpoint.key


def sandbox_env(env: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The part of `env` that is meant for the kernel.

    Applications pass a copy of their own environment along: what is the same there stays here, and so do
    Jupyter's variables about its own process.
    """
    return {
        name: value
        for name, value in env.items()
        if own.get(name) != value and not name.startswith(("JPY_", "PYDEVD_", "LLMSAFESPACE_"))
    }


def portable(connection: Mapping[str, Any]) -> dict[str, Any]:
    """Connection information as JSON can hold it."""
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in connection.items()}
