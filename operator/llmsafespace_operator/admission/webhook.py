"""The webhook: what the API server asks (AdmissionReview v1) about objects that depend on others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from llmsafespace_kube.api.client import Forbidden, KubeClient, KubeError, NotFound
from llmsafespace_kube.resources.kinds import PROFILE, RUNTIME, WARMPOOL
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    RuntimeEnvironment,
    Sandbox,
    SandboxProfile,
    SandboxSpec,
    WarmPool,
    WarmPoolSpec,
)
from llmsafespace_kube.resources.words import not_served
from llmsafespace_operator.admission.rotation import Rotation
from llmsafespace_operator.admission.rules import (
    Verdict,
    can_be_removed,
    can_be_served,
    wants_the_same,
)

_log = logging.getLogger(__name__)

PATH = "/validate"
_LARGEST = 4 * 1024 * 1024  # bytes: two objects of the size that the API server takes
_NOTHING = msgspec.Raw(b"null")


class _Kind(msgspec.Struct):
    kind: str


class Request(msgspec.Struct, rename="camel"):
    """What somebody wants to do with an object."""

    uid: str
    kind: _Kind
    operation: str
    name: str = ""
    namespace: str = ""
    object: msgspec.Raw = _NOTHING
    old_object: msgspec.Raw = _NOTHING


class _Review(msgspec.Struct):
    request: Request


class Judge:
    """Answers requests from what the API server has now: a cache would refuse what has just been made."""

    def __init__(
        self,
        client: KubeClient,
        system_namespace: str,
        pool_namespaces: Sequence[str],
        sandbox_namespaces: Collection[str] = (),
    ) -> None:
        self._client = client
        self._system_namespace = system_namespace
        self._pool_namespaces = pool_namespaces
        self._sandbox_namespaces = sandbox_namespaces

    async def verdict(self, request: Request) -> Verdict:
        """Raises KubeError, and msgspec.ValidationError for what is no such object."""
        match request.kind.kind, request.operation:
            case "Sandbox", "CREATE":
                sandbox = msgspec.json.decode(request.object, type=Sandbox)
                if self._sandbox_namespaces and request.namespace not in self._sandbox_namespaces:
                    return Verdict("", (not_served("Sandbox", request.namespace, self._sandbox_namespaces),))
                return await self._served(sandbox.spec, request.namespace)
            case "WarmPool", "CREATE":
                pool = msgspec.json.decode(request.object, type=WarmPool)
                if request.namespace not in self._pool_namespaces:
                    return Verdict("", (not_served("WarmPool", request.namespace, self._pool_namespaces),))
                return await self._served(pool.spec, request.namespace)
            case "WarmPool", "UPDATE":
                pool = msgspec.json.decode(request.object, type=WarmPool)
                old = msgspec.json.decode(request.old_object, type=WarmPool)
                same = wants_the_same(pool.spec, old.spec)
                return Verdict() if same else await self._served(pool.spec, request.namespace)
            case "RuntimeEnvironment", "DELETE":
                return can_be_removed(request.name, await self._environments(), await self._pools())
        return Verdict()

    async def _served(self, spec: SandboxSpec | WarmPoolSpec, namespace: str) -> Verdict:
        environments = await self._environments()
        profile = await self._profile(spec, namespace)
        return can_be_served(spec, namespace, environments, lambda *_: profile, self._system_namespace)

    async def _environments(self) -> list[RuntimeEnvironment]:
        environments, _ = await self._client.list(RUNTIME)
        return environments

    async def _pools(self) -> list[WarmPool]:
        lists = [await self._client.list(WARMPOOL, namespace) for namespace in self._pool_namespaces]
        return [pool for pools, _ in lists for pool in pools]

    async def _profile(self, spec: SandboxSpec | WarmPoolSpec, namespace: str) -> SandboxProfile | None:
        """None, too, where the operator may not look: it could not use that profile either."""
        name: str = spec.security_level
        where = self._system_namespace
        if spec.profile_ref is not None:
            name, where = spec.profile_ref.name, spec.profile_ref.namespace or namespace
        with suppress(NotFound, Forbidden):
            return await self._client.get(PROFILE, name, where)
        return None


class _Handler(RequestHandler):
    def initialize(self, judge: Judge) -> None:
        self._judge = judge

    async def post(self) -> None:
        try:
            request = msgspec.json.decode(self.request.body, type=_Review).request
            verdict = await self._judge.verdict(request)
        except msgspec.MsgspecError as error:
            raise HTTPError(400, "no AdmissionReview: %s", error) from None
        except KubeError as error:
            raise HTTPError(500, "nothing could be looked up: %s", error) from None
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(_answer(request.uid, verdict)))


def _answer(uid: str, verdict: Verdict) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": uid, "allowed": not verdict.refusal}
    if verdict.refusal:
        response["status"] = {"code": 422, "reason": "Invalid", "message": verdict.refusal}
    if verdict.warnings:
        response["warnings"] = verdict.warnings
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


class Webhook:
    """The HTTPS server of `judge`; it opens its port once there is a certificate to serve."""

    def __init__(self, judge: Judge, rotation: Rotation, *, port: int, address: str = "") -> None:
        application = Application([(PATH, _Handler, {"judge": judge})])
        self._server = HTTPServer(
            application, ssl_options=rotation.context, max_body_size=_LARGEST, idle_connection_timeout=120
        )
        self._rotation = rotation
        self._port = port
        self._address = address
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts at once; that the operator works does not depend on its webhook."""
        self._tasks = [asyncio.create_task(self._rotation.run()), asyncio.create_task(self._listen())]

    async def _listen(self) -> None:
        await self._rotation.ready.wait()
        try:
            self._server.add_sockets(bind_sockets(self._port, self._address))
        except OSError as error:
            _log.error("the webhook cannot listen on port %d: %s", self._port, error)

    async def stop(self) -> None:
        """Ends every task and connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.stop()
        await self._server.close_all_connections()


def webhook(client: KubeClient, settings: Settings) -> Webhook:
    """The webhook of an installation: its Service has the name of its configuration."""
    name, namespace = settings.webhook_config, settings.system_namespace
    return Webhook(
        Judge(client, namespace, settings.pool_namespaces, settings.sandbox_namespaces),
        Rotation(client, namespace, name, [f"{name}.{namespace}.svc"]),
        port=settings.webhook_port,
    )
