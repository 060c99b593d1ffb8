"""The validating webhook: answers the API server's AdmissionReview (v1) for rules across objects.

Schemas and CEL rules in the CRDs check one object, and ValidatingAdmissionPolicies check who changes what.
The webhook checks only what depends on other objects: whether a Sandbox's or WarmPool's runtime and profile
exist, and whether a RuntimeEnvironment is still used. It reads those objects from the API server for each
request; a cache could refuse a Sandbox whose runtime has just been created. The webhook is a convenience that
reports errors early: the operator handles the same errors in conditions when the webhook is not there.
"""

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
_LARGEST = 4 * 1024 * 1024  # bytes: two objects of the maximum size that the API server accepts
_NOTHING = msgspec.Raw(b"null")


class _Kind(msgspec.Struct):
    kind: str


class Request(msgspec.Struct, rename="camel"):
    """The request of an AdmissionReview: an operation on an object."""

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
    """Decides about requests, from the present objects in the API server."""

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
        """Return the decision. Raises KubeError, and msgspec.ValidationError if the object is malformed."""
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
        """Return the profile; None if it does not exist or the operator may not read its namespace."""
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
            raise HTTPError(400, "not a valid AdmissionReview: %s", error) from None
        except KubeError as error:
            raise HTTPError(500, "the objects could not be read: %s", error) from None
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
    """The HTTPS server of `judge`. It opens its port when the first certificate is ready."""

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
        """Start in the background. The operator does not wait for its webhook."""
        self._tasks = [asyncio.create_task(self._rotation.run()), asyncio.create_task(self._listen())]

    async def _listen(self) -> None:
        await self._rotation.ready.wait()
        try:
            self._server.add_sockets(bind_sockets(self._port, self._address))
        except OSError as error:
            _log.error("the webhook cannot listen on port %d: %s", self._port, error)

    async def stop(self) -> None:
        """End all tasks and connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.stop()
        await self._server.close_all_connections()


def webhook(client: KubeClient, settings: Settings) -> Webhook:
    """Make the webhook of an installation. Its Service has the name of the webhook configuration."""
    name, namespace = settings.webhook_config, settings.system_namespace
    return Webhook(
        Judge(client, namespace, settings.pool_namespaces, settings.sandbox_namespaces),
        Rotation(client, namespace, name, [f"{name}.{namespace}.svc"]),
        port=settings.webhook_port,
    )
