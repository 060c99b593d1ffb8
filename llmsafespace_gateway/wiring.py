"""Which part gets which: built once at start, taken down in reverse."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornado.httpserver import HTTPServer
from tornado.web import Application

from llmsafespace_gateway import jupyter, rest
from llmsafespace_gateway.access import Access, local_principal
from llmsafespace_gateway.backends.local import LocalBackend
from llmsafespace_gateway.backends.runtimes import Runtimes
from llmsafespace_gateway.egress.proxy import Decision, EgressProxy
from llmsafespace_gateway.logs import JsonFormatter
from llmsafespace_gateway.metrics import Metrics
from llmsafespace_gateway.sandboxes.manager import Sandboxes
from llmsafespace_gateway.store import Store, sqlite_url

if TYPE_CHECKING:
    from llmsafespace_gateway.app import GatewayApp


class Services:
    """The parts of one gateway process, started."""

    def __init__(
        self,
        app: GatewayApp,
        store: Store,
        access: Access,
        backend: LocalBackend,
        sandboxes: Sandboxes,
        egress: EgressProxy,
        runtimes: Runtimes,
        first_key: str | None,
    ) -> None:
        self._app = app
        self._store = store
        self._access = access
        self._backend = backend
        self._sandboxes = sandboxes
        self._egress = egress
        self._runtimes = runtimes
        self.first_key = first_key

    def application(self) -> Application:
        """Every route, and what its handlers use."""
        settings: dict[str, Any] = {
            "access": self._access,
            "sandboxes": self._sandboxes,
            "store": self._store,
            "backend": self._backend,
            "metrics": Metrics(),
            "default_runtime": self._app.default_runtime,
            "log_function": lambda handler: None,
            "default_handler_class": rest.RestHandler,
            "default_handler_args": {"router": rest.Router(()), "prefix": ""},
        }
        return Application([*rest.routes(), *jupyter.routes()], **settings)

    async def drain(self, server: HTTPServer) -> None:
        """Let running requests end; websockets are told to come back."""
        await jupyter.drain()
        await server.close_all_connections()

    async def close(self, end_sandboxes: bool) -> None:
        """Write down what is in memory and let go; with `end_sandboxes` no sandbox is left."""
        if end_sandboxes:
            for place in await self._backend.living():
                await self._sandboxes.delete(place.sandbox_id)
        await self._sandboxes.stop()
        await self._backend.stop()
        await self._egress.stop()
        await self._runtimes.stop()
        await self._access.stop()
        await self._store.close()


def _data_dir(name: str) -> Path:
    data_dir = Path(name).expanduser().absolute()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    return data_dir


async def build(app: GatewayApp) -> Services:
    """Make and start every part. Raises ApiError with what to do when one cannot."""
    _log_as_json(app.log_level)
    data_dir = _data_dir(app.data_dir)
    store = await Store.open(app.database_url or sqlite_url(data_dir))
    access = Access(
        store,
        rate=app.rate_limit,
        burst=app.rate_burst,
        quota=app.quotas,
        anonymous=local_principal() if app.embedded else None,
    )
    first_key = await access.first_run()
    await access.start()
    runtimes = Runtimes(Path(app.runtimes_dir), packages=app.runtime_packages, strict=app.strict_runtimes)
    await runtimes.start()
    egress = EgressProxy(await runtimes.egress_rules(), on_decision=_audited(access))
    pools = [rest.pool_spec(pool) for pool in app.warm_pools]
    backend = LocalBackend(
        data_dir=data_dir,
        runtimes=runtimes,
        egress=egress,
        pools=pools,
        insecure=app.insecure_no_isolation,
    )
    await backend.start()
    await rest.restore_pools(store, backend, pools)
    sandboxes = Sandboxes(store, backend)
    sandboxes.on_any_ended = access.sandbox_ended
    await sandboxes.start()
    return Services(app, store, access, backend, sandboxes, egress, runtimes, first_key)


def _audited(access: Access) -> Any:
    def record(decision: Decision) -> None:
        access.audit(
            None,
            "egress",
            decision.key,
            "allowed" if decision.allowed else "denied",
            host=decision.host,
            port=decision.port,
            reason=decision.reason,
        )

    return record


def _log_as_json(level: int | str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("alembic").setLevel(logging.WARNING)
