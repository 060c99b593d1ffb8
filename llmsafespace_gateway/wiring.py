"""Which part gets which: built once at start, taken down in reverse."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from tornado.web import Application

from llmsafespace_gateway import failures, jupyter, rest
from llmsafespace_gateway.access import Access, local_principal
from llmsafespace_gateway.access.audit_events import AuditEvents, event_logger
from llmsafespace_gateway.backends.base import SandboxBackend
from llmsafespace_gateway.backends.local import LocalBackend
from llmsafespace_gateway.backends.runtimes import Runtimes
from llmsafespace_gateway.data_dir import DataDir
from llmsafespace_gateway.egress.proxy import Decision, EgressProxy
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.metrics import Metrics
from llmsafespace_gateway.readiness import Readiness
from llmsafespace_gateway.sandboxes.manager import Sandboxes
from llmsafespace_gateway.services import Parts, Services, pools
from llmsafespace_gateway.services.completion import Completion
from llmsafespace_gateway.serving import AllowedOrigins
from llmsafespace_gateway.store import Store, sqlite_file, sqlite_url, stated_url, users
from llmsafespace_gateway.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from llmsafespace_gateway.app import GatewayApp

# Modules with `routes()`, the rules for tornado's Application, and `drain()`, which ends what stays open.
DOORS: tuple[ModuleType, ...] = (rest, jupyter)


class Gateway:
    """The parts of one gateway process, started."""

    def __init__(
        self,
        app: GatewayApp,
        store: Store,
        access: Access,
        backend: SandboxBackend,
        sandboxes: Sandboxes,
        metrics: Metrics,
        readiness: Readiness,
        parts: AsyncExitStack,
        first_key: str | None,
    ) -> None:
        self._app = app
        self._store = store
        self._access = access
        self._backend = backend
        self._sandboxes = sandboxes
        self._metrics = metrics
        self._parts = parts
        self.readiness = readiness
        self.first_key = first_key

    def application(self) -> Application:
        """Every route, and what its handlers use."""
        settings: dict[str, Any] = {
            "services": Services(self._service_parts()),
            "access": self._access,
            "metrics": self._metrics,
            "readiness": self.readiness,
            "allow_token_in_url": self._app.allow_token_in_url,
            "log_function": lambda handler: None,
            "default_handler_class": rest.RestHandler,
            "default_handler_args": {"router": rest.Router(()), "prefix": ""},
        }
        origins = AllowedOrigins(self._app.allow_origin, self._app.allow_origin_pat)
        rules: list[Any] = [*origins.rules(), *(rule for door in DOORS for rule in door.routes())]
        return Application(rules, transforms=origins.transforms(), **settings)

    def _service_parts(self) -> Parts:
        return Parts(
            self._access,
            self._sandboxes,
            self._store,
            self._backend,
            self._metrics,
            self._app.default_runtime,
        )

    async def tell_clients_to_return(self) -> None:
        """Close every websocket with the code that says: connect again. Returns when all have closed."""
        await asyncio.gather(*(door.drain() for door in DOORS))

    async def close(self, end_sandboxes: bool) -> None:
        """Write down what is in memory and let go; with `end_sandboxes` no sandbox is left."""
        if end_sandboxes:
            for place in await self._backend.living():
                await self._sandboxes.delete(place.sandbox_id)
        await self._parts.aclose()


def _own(app: GatewayApp, parts: AsyncExitStack) -> Path:
    """The data dir, which is this process's until everything else has ended."""
    data_dir = DataDir.take(app.data_dir, app.where)
    parts.callback(data_dir.release)
    return data_dir.path


async def build(app: GatewayApp) -> Gateway:
    """Make and start every part. Raises ApiError with what to do when one cannot."""
    try:
        return await _build(app)
    except (SQLAlchemyError, sqlite3.Error) as error:  # while its rows were read
        url = stated_url(app.database_url, app.database_url_file)
        found = sqlite_file(url or sqlite_url(Path(app.data_dir)))
        raise _no_store(error, Path(found) if found else None) from error


async def _build(app: GatewayApp) -> Gateway:
    async with AsyncExitStack() as parts:
        data_dir = _own(app, parts)
        url = stated_url(app.database_url, app.database_url_file)
        store = await _store(url or sqlite_url(data_dir))
        parts.push_async_callback(store.close)
        given_key = _first_key(app.first_key_file)
        access = Access(
            store,
            rate=app.rate_limit,
            burst=app.rate_burst,
            quota=app.quotas,
            audit_days=app.audit_days,
            audit_entries=app.audit_entries,
            anonymous=local_principal() if app.embedded else None,
        )
        if (events := event_logger(app.config)) is not None:
            access.emit_audit(AuditEvents(events))
        await users.ensure_tenant(store, DEFAULT_TENANT)
        parts.push_async_callback(access.stop)
        await access.start()
        metrics = Metrics()
        access.executions.count = lambda door, outcome: metrics.asked.labels(door, outcome).inc()
        if app.backend == "kubernetes":
            backend = await _kubernetes(app, metrics, access, parts)
        else:
            backend = await _local(app, data_dir, store, access, parts)
        sandboxes = Sandboxes(store, backend)
        sandboxes.on_any_ended = access.sandbox_ended
        sandboxes.on_adopted = access.sandbox_adopted
        parts.push_async_callback(sandboxes.stop)
        await sandboxes.start()
        completing = asyncio.create_task(
            Completion(access, sandboxes, store).run(), name="complete the audit"
        )
        parts.callback(completing.cancel)
        await asyncio.to_thread(rest.prepare)
        database = Path(found) if (found := sqlite_file(url or sqlite_url(data_dir))) else None
        readiness = Readiness(data_dir, database, store, backend)
        # Last: a key that is made is shown, as nothing that could fail comes after it.
        first_key = await access.first_run(given_key)
        return Gateway(app, store, access, backend, sandboxes, metrics, readiness, parts.pop_all(), first_key)


async def _store(url: str) -> Store:
    try:
        return await Store.open(url)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ApiError(
            "invalid_request",
            "invalid --database-url: it must be as sqlite:////path/of/file "
            f"or postgresql://user@host/name ({type(error).__name__})",
        ) from error
    except RuntimeError as error:  # of a newer gateway
        raise ApiError("service_unavailable", str(error)) from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        found = sqlite_file(url)
        raise _no_store(error, Path(found) if found else None) from error


def _no_store(error: Exception, path: Path | None) -> ApiError:
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    if failures.is_damaged(error):
        return failures.damaged(path, reason)
    at = f" {path}" if path is not None else ""
    return ApiError("service_unavailable", f"the database{at} cannot be opened: {reason}")


def _first_key(path: str) -> str | None:
    return Path(path).read_text().strip() if path else None


async def _local(
    app: GatewayApp, data_dir: Path, store: Store, access: Access, parts: AsyncExitStack
) -> SandboxBackend:
    runtimes = Runtimes(Path(app.runtimes_dir), packages=app.runtime_packages, strict=app.strict_runtimes)
    parts.push_async_callback(runtimes.stop)
    await runtimes.start()
    egress = EgressProxy(await runtimes.egress_rules(), on_decision=_audited(access))
    parts.push_async_callback(egress.stop)
    configured = [rest.pool_spec(pool) for pool in app.warm_pools]
    backend = LocalBackend(
        data_dir=data_dir,
        runtimes=runtimes,
        egress=egress,
        pools=configured,
        insecure=app.insecure_no_isolation,
    )
    backend.on_growth = access.pool_grows
    parts.push_async_callback(backend.stop)
    await backend.start()
    await pools.restore(store, backend, access, configured)
    return backend


async def _kubernetes(
    app: GatewayApp, metrics: Metrics, access: Access, parts: AsyncExitStack
) -> SandboxBackend:
    try:
        from llmsafespace_gateway.backends.kubernetes import METRICS, KubernetesBackend
    except ImportError as error:
        raise ApiError(
            "invalid_request",
            f"--backend kubernetes needs more packages ({error.name} is missing): "
            "pip install 'llmsafespace-gateway[kubernetes]'",
        ) from error
    for collector in METRICS:
        metrics.registry.register(collector)
    backend = await KubernetesBackend.connect(Path(app.kubernetes_settings), strict=app.strict_runtimes)
    backend.on_pool(access.pool_seen)
    parts.push_async_callback(backend.stop)
    await backend.start()
    return backend


def _audited(access: Access) -> Any:
    def record(decision: Decision) -> None:
        outcome = "allowed" if decision.allowed else "denied"
        access.egress(decision.key, decision.host, decision.port, outcome, decision.reason)

    return record
