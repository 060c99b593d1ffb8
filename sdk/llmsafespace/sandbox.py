"""AsyncSandbox: how a sandbox is created, found, listed and ended. What it offers is in operations.py."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from typing import Any

from llmsafespace import models, requests
from llmsafespace.clients import client_for
from llmsafespace.errors import NotFound, SandboxEnded
from llmsafespace.models import SandboxInfo, SandboxStatus
from llmsafespace.operations import SandboxOperations
from llmsafespace.requests import Content, NetworkAccess
from llmsafespace.transport import API, Transport, segment

InfoList = list[SandboxInfo]
# Seconds. A runtime that is used for the first time may have to be prepared. In a cluster a sandbox may wait
# for its turn (180), for a node (15; 300 where they are added on demand), its pod (180) and an operator (90).
CREATE_TIMEOUT = 900.0
# Seconds until it is asked for on another connection, as the first may have gone silent. A start may take
# longer: for what is under way the gateway makes one sandbox, however often it is asked.
CREATE_SOON = 240.0


class AsyncSandbox(SandboxOperations):
    """An isolated place with a real Jupyter kernel in it.

    It starts with `await AsyncSandbox(...)` or `async with AsyncSandbox(...) as sandbox:`.

    The default of `runtime` is that of the warm pool named, or else the gateway's, a current Python.
    `timeout` (seconds) is the longest that one execution may run. The sandbox ends with `terminate()`, at
    the end of a `with` block, after `idle_timeout` seconds with nothing running and nobody connected, or at
    `max_lifetime`.
    `warm_pool` names the pool to take the sandbox from, with its preloaded packages and scripts.
    Without `api_url`, `api_key` and their environment variables a private gateway is started.
    """

    def __init__(
        self,
        runtime: str | None = None,
        api_key: str | None = None,
        security_level: str = "standard",
        timeout: float | None = 300,
        resources: Mapping[str, Any] | None = None,
        network_access: NetworkAccess = None,
        api_url: str | None = None,
        use_warm_pool: bool = True,
        *,
        warm_pool: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, Content] | None = None,
        packages: str | Iterable[str] | None = None,
        cwd: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idle_timeout: float | None = 600,
        max_lifetime: float | None = None,
    ) -> None:
        self._request = requests.creation(
            runtime=runtime,
            security_level=security_level,
            timeout=timeout,
            resources=resources,
            network_access=network_access,
            use_warm_pool=use_warm_pool,
            warm_pool=warm_pool,
            env=env,
            files=files,
            packages=packages,
            cwd=cwd,
            metadata=metadata,
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
        )
        self._where = (api_url, api_key)
        self._idempotency_key = uuid.uuid4().hex

    # -- beginning and end

    @classmethod
    async def create(cls, *args: Any, **options: Any) -> AsyncSandbox:
        """A new sandbox that is ready: the same as `await AsyncSandbox(...)`."""
        return await cls(*args, **options)

    @classmethod
    async def connect(
        cls, sandbox_id: str, *, api_key: str | None = None, api_url: str | None = None
    ) -> AsyncSandbox:
        """Connect to an existing sandbox. Raises NotFound, or SandboxEnded with the reason."""
        sandbox = cls(api_key=api_key, api_url=api_url)
        client = await client_for(api_url, api_key)
        try:
            document = await client.transport.request("GET", f"{API}/sandboxes/{segment(sandbox_id)}")
            info = models.sandbox_info(document)
            if info.state == "ended":
                raise SandboxEnded(
                    f"sandbox {sandbox_id} has ended: {info.end}", code="gone", details={"end": info.end}
                )
        except BaseException:
            await client.close()
            raise
        sandbox._enter(client, info)
        return sandbox

    @classmethod
    async def list(
        cls, *, state: str | None = None, api_key: str | None = None, api_url: str | None = None
    ) -> InfoList:
        """The caller's sandboxes, newest first. `state` selects one state: creating, running or ended."""
        client = await client_for(api_url, api_key)
        try:
            documents = [item async for item in pages(client.transport, f"{API}/sandboxes")]
        finally:
            await client.close()
        return [info for info in map(models.sandbox_info, documents) if state in (None, info.state)]

    def __await__(self) -> Generator[Any, None, AsyncSandbox]:
        return self.begin().__await__()

    async def __aenter__(self) -> AsyncSandbox:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self.terminate()

    async def begin(self) -> AsyncSandbox:
        """Create the sandbox, unless that is done. A broken connection never leads to a second one."""
        if self._info is not None:
            return self
        client = await client_for(*self._where)
        try:
            document = await client.transport.request(
                "POST",
                f"{API}/sandboxes",
                body=self._request,
                headers={"Idempotency-Key": self._idempotency_key},
                timeout=CREATE_TIMEOUT,
                repeatable=True,
                soon=CREATE_SOON,
            )
        except BaseException:
            await client.close()
            raise
        self._enter(client, models.sandbox_info(document), fresh=True)
        return self

    async def terminate(self) -> bool:
        """End the sandbox and everything in it; False when it had ended already."""
        if self._client is None:
            return False
        try:
            known = await self.transport.request("GET", self._path)
            if known["status"] != "ended":
                await self.transport.request("DELETE", self._path)
        except (NotFound, SandboxEnded):
            return False
        finally:
            await self.close()
        return bool(known["status"] != "ended")

    async def close(self) -> None:
        """Disconnect without ending the sandbox; `connect(id)` finds it again."""
        client, self._client = self._client, None
        if client is not None:
            await self._leaving.wait()
            await self._runner.close()
            await client.close()

    async def status(self) -> SandboxStatus:
        """The current state, resource use and isolation."""
        return models.sandbox_status(await self.transport.request("GET", f"{self._path}/status"))

    async def set_timeout(
        self,
        timeout: float | None = None,
        *,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
    ) -> None:
        """Change limits (seconds) of one execution, idle time and the whole life. None keeps a limit."""
        limits = {"timeout": timeout, "idleTimeout": idle_timeout, "maxLifetime": max_lifetime}
        body = {name: value for name, value in limits.items() if value is not None}
        document = await self.transport.request("PATCH", self._path, body=body, repeatable=True)
        self._info = models.sandbox_info(document)
        self._runner.timeout = self._info.timeout

    def __repr__(self) -> str:
        return "<AsyncSandbox>" if self._info is None else f"<AsyncSandbox {self.id} {self.runtime}>"


async def pages(transport: Transport, path: str) -> AsyncIterator[dict[str, Any]]:
    """Every item of a list that the gateway gives in pages."""
    after: str | None = None
    while True:
        params = {"after": after} if after is not None else None
        document = await transport.request("GET", path, params=params)
        for item in document["items"]:
            yield item
        after = document.get("next")
        if after is None:
            return
