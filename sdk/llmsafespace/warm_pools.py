"""Warm pools: sandboxes that are started ahead, so that a new one begins at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llmsafespace import models, requests
from llmsafespace.clients import client_for
from llmsafespace.errors import NotFound
from llmsafespace.portal import portal
from llmsafespace.sandbox import pages
from llmsafespace.transport import API, segment


@dataclass(frozen=True)
class WarmPoolStatus:
    """The number of sandboxes that are available (warm), assigned (in use) and pending (starting)."""

    available: int
    assigned: int
    pending: int
    last_scale_time: datetime | None = None
    conditions: list[dict[str, Any]] = field(default_factory=list)


class WarmPool:
    """A pool of started sandboxes; `WarmPool(...)` creates it.

    `preload_scripts` maps names to Python code; `auto_scaling` is a mapping such as
    `{"enabled": True, "target_utilization": 80}`. `max_size` 0 is unlimited. A pool that preloads code
    serves sandboxes that name it, `Sandbox(warm_pool=name)`. Only an admin can make it `published`: then it
    serves other sandboxes too.
    """

    def __init__(
        self,
        name: str,
        runtime: str = "python",
        min_size: int = 1,
        max_size: int = 0,
        security_level: str = "standard",
        preload_packages: Iterable[str] = (),
        preload_scripts: Mapping[str, str] | Iterable[Mapping[str, str]] = (),
        auto_scaling: Mapping[str, Any] | None = None,
        *,
        resources: Mapping[str, Any] | None = None,
        ttl: int | None = None,
        published: bool = False,
        api_key: str | None = None,
        api_url: str | None = None,
    ) -> None:
        body: dict[str, Any] = {
            "name": name,
            "runtime": runtime,
            "minSize": min_size,
            "maxSize": max_size,
            "securityLevel": security_level,
            "preloadPackages": list(preload_packages),
            "preloadScripts": _scripts(preload_scripts),
        }
        optional = {
            "autoScaling": requests.camel(auto_scaling) if auto_scaling else None,
            "resources": requests.camel(resources) if resources else None,
            "ttl": ttl,
            "published": published or None,
        }
        body |= {key: value for key, value in optional.items() if value is not None}
        self._where = (api_url, api_key)
        self._take(_request(self._where, "POST", f"{API}/warmpools", body))

    @classmethod
    def _of(cls, where: tuple[str | None, str | None], document: Mapping[str, Any]) -> WarmPool:
        pool = cls.__new__(cls)
        pool._where = where
        pool._take(document)
        return pool

    def _take(self, document: Mapping[str, Any]) -> None:
        self.name: str = document["name"]
        self.runtime: str = document["runtime"]
        self.min_size: int = document["minSize"]
        self.max_size: int = document["maxSize"]
        self.security_level: str = document["securityLevel"]
        self.preload_packages: list[str] = list(document.get("preloadPackages") or [])
        self._path = f"{API}/warmpools/{segment(self.name)}"

    def scale(self, min_size: int | None = None, max_size: int | None = None) -> WarmPool:
        """Change how many sandboxes it keeps."""
        sizes = {"minSize": min_size, "maxSize": max_size}
        body = {key: value for key, value in sizes.items() if value is not None}
        self._take(_request(self._where, "PATCH", self._path, body))
        return self

    def delete(self) -> bool:
        """Remove the pool; sandboxes that were taken from it live on. False when there was none."""
        try:
            _request(self._where, "DELETE", self._path)
        except NotFound:
            return False
        return True

    def status(self) -> WarmPoolStatus:
        """The current numbers of sandboxes, and conditions."""
        document = _request(self._where, "GET", f"{self._path}/status")
        return WarmPoolStatus(
            document["availablePods"],
            document["assignedPods"],
            document["pendingPods"],
            models.moment(document.get("lastScaleTime")),
            list(document.get("conditions") or []),
        )

    def __repr__(self) -> str:
        return f"<WarmPool {self.name} {self.runtime} {self.min_size}..{self.max_size or 'unlimited'}>"


def list_warm_pools(*, api_key: str | None = None, api_url: str | None = None) -> list[WarmPool]:
    """The warm pools that serve the caller."""
    where = (api_url, api_key)
    return [WarmPool._of(where, document) for document in portal().run(_all(where))]


def get_warm_pool(name: str, *, api_key: str | None = None, api_url: str | None = None) -> WarmPool:
    """One warm pool. Raises NotFound."""
    where = (api_url, api_key)
    return WarmPool._of(where, _request(where, "GET", f"{API}/warmpools/{segment(name)}"))


def _scripts(scripts: Mapping[str, str] | Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    if isinstance(scripts, Mapping):
        return [{"name": name, "content": content} for name, content in scripts.items()]
    return [dict(script) for script in scripts]


def _request(where: tuple[str | None, str | None], method: str, path: str, body: Any = None) -> Any:
    return portal().run(_send(where, method, path, body))


async def _send(where: tuple[str | None, str | None], method: str, path: str, body: Any) -> Any:
    client = await client_for(*where)
    try:
        return await client.transport.request(method, path, body=body)
    finally:
        await client.close()


async def _all(where: tuple[str | None, str | None]) -> list[dict[str, Any]]:
    client = await client_for(*where)
    try:
        return [item async for item in pages(client.transport, f"{API}/warmpools")]
    finally:
        await client.close()
