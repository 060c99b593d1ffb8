"""`/api`, `/api/me`, `/api/status` and the kernelspecs."""

from __future__ import annotations

import asyncio
import mimetypes
import time
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

import msgspec

from llmsafespace_gateway.access.principal import (
    ADMIN,
    EXECUTE,
    FILES_READ,
    FILES_WRITE,
    SANDBOXES_READ,
    SANDBOXES_WRITE,
    Principal,
)
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.base import JupyterHandler
from llmsafespace_gateway.jupyter.kernelspecs import DEFAULT, Spec, model, resource, specs
from llmsafespace_gateway.jupyter.models import timestamp
from llmsafespace_protocol.kernel_messages import UNREADABLE

STARTED = time.time()
# The release of jupyter_server whose API this is; clients compare it. The package itself is not needed.
_VERSIONS = {"version": "2.17.0", "gateway_version": version("llmsafespace-gateway")}

# Which scope an action on a resource of Jupyter's authorization model needs here.
_READ = {"api": SANDBOXES_READ, "kernels": SANDBOXES_READ, "kernelspecs": SANDBOXES_READ}
_READ |= {"sessions": SANDBOXES_READ, "contents": FILES_READ, "server": ADMIN}
_WRITE = {"kernels": SANDBOXES_WRITE, "sessions": SANDBOXES_WRITE, "contents": FILES_WRITE, "server": ADMIN}
_EXECUTE = {"kernels": EXECUTE}
_ACTIONS = {"read": _READ, "write": _WRITE, "execute": _EXECUTE}


class Version(JupyterHandler):
    """`/api`: public, as everywhere."""

    async def prepare(self) -> None:
        """No key is needed."""

    def get(self) -> None:
        """The version of the Jupyter API that is spoken, and the gateway's own."""
        self.answer(_VERSIONS)


class Me(JupyterHandler):
    """`/api/me`"""

    def get(self) -> None:
        """Who the caller is, and which of the asked permissions the key has."""
        asked = self.get_query_argument("permissions", "")
        self.answer({"identity": identity(self.principal), "permissions": permissions(self.principal, asked)})


class Status(JupyterHandler):
    """`/api/status`"""

    async def get(self) -> None:
        """Counts of the caller's kernels."""
        live = await self.services.kernels.all(self.caller)
        self.answer(
            {
                "started": timestamp(STARTED),
                "last_activity": timestamp(max([STARTED, *(row.last_activity for row in live)])),
                "kernels": len(live),
                "connections": sum(row.connections for row in live),
            }
        )


class KernelSpecList(JupyterHandler):
    """`/api/kernelspecs`"""

    async def get(self) -> None:
        """All kernelspecs; the default one is `python3`."""
        self.access.require(self.principal, SANDBOXES_READ)
        known = specs(await self.services.runtimes.all())
        default = DEFAULT if DEFAULT in known else next(iter(known), DEFAULT)
        self.answer({"default": default, "kernelspecs": {name: model(spec) for name, spec in known.items()}})


class KernelSpecHandler(JupyterHandler):
    """What the routes about one kernelspec need."""

    async def spec(self, name: str) -> Spec:
        """A kernelspec. Raises ApiError(not_found)."""
        self.access.require(self.principal, SANDBOXES_READ)
        name = unquote(name)
        found = specs(await self.services.runtimes.all()).get(name)
        if found is None:
            raise ApiError("not_found", f"Kernel spec {name[:80]} not found")
        return found


class KernelSpecItem(KernelSpecHandler):
    """`/api/kernelspecs/{name}`"""

    async def get(self, name: str) -> None:
        """One kernelspec."""
        self.answer(model(await self.spec(name)))


class KernelSpecResource(KernelSpecHandler):
    """`/kernelspecs/{name}/{file}`"""

    async def get(self, name: str, file: str) -> None:
        """A logo."""
        path = resource(await self.spec(name), unquote(file))
        if path is None:
            raise ApiError("not_found", f"kernel spec {name[:80]} has no resource {file[:80]}")
        self.set_header("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        self.set_header("Cache-Control", "private, max-age=86400")
        self.finish(await asyncio.to_thread(path.read_bytes))

    head = get


def identity(principal: Principal) -> dict[str, Any]:
    """Jupyter's identity model of a caller."""
    name = principal.user
    return {
        "username": name,
        "name": name,
        "display_name": name,
        "initials": name[:2].upper(),
        "avatar_url": None,
        "color": None,
    }


def permissions(principal: Principal, asked: str) -> dict[str, list[str]]:
    """Of the asked `{resource: [action]}` (JSON), what the caller's key allows. Raises ApiError."""
    try:
        wanted = msgspec.json.decode(asked.encode(), type=dict[str, list[str]]) if asked else {}
    except (UnicodeError, *UNREADABLE) as error:
        raise ApiError(
            "invalid_request", 'permissions should be a JSON dict of {"resource": ["action",]}'
        ) from error
    found = {
        name: [action for action in actions if _ACTIONS.get(action, {}).get(name) in principal.scopes]
        for name, actions in wanted.items()
    }
    return found | {"updatable_fields": []}
