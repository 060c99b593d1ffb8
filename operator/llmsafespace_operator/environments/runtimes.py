"""Reconciles RuntimeEnvironments, and writes the list of images that admission allows in sandboxes."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.conditions import condition, merged
from llmsafespace_kube.resources.kinds import CONFIG_MAP, RUNTIME
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import RuntimeEnvironment, RuntimeEnvironmentStatus
from llmsafespace_operator.environments.verdict import MEMORY, UNUSABLE, Verdict, allowed, evidence, judge

log = logging.getLogger(__name__)

_CORRECTION = 5.0  # seconds
_IMAGES: Key = ("", "")  # the only key of the images controller: the list as a whole


class RuntimeReconciler:
    """Decides which runtimes are available, by their specs and pods. Call `follow` once."""

    def __init__(
        self,
        client: KubeClient,
        runtimes: Informer[RuntimeEnvironment],
        pods: Informer[Pod],
        settings: Settings,
    ) -> None:
        self._client = client
        self._runtimes = runtimes
        self._pods = pods
        self._settings = settings
        self.controller = Controller("runtime", self.reconcile, workers=1)
        self.images_controller = Controller("images", self.write_images, workers=1)

    def follow(self) -> None:
        """Register for changes. Call it before the informers start."""
        self._runtimes.on_change(self._runtime_changed)
        self._pods.on_change(self._pod_changed)

    def rewrite(self) -> None:
        """Write the list of images: it may have changed while this process was not the leader."""
        self.images_controller.enqueue(_IMAGES)

    async def reconcile(self, key: Key) -> float | None:
        """Write the verdict if it has changed; return the seconds until the next check. Raises KubeError."""
        environment = self._runtimes.get(key[1])
        if environment is None:
            return None
        now = datetime.now(UTC)
        verdict = judge(environment, self._pods.items(), now)
        await self._write(environment, verdict, now)
        return MEMORY if verdict.reason == UNUSABLE else None

    async def _write(self, environment: RuntimeEnvironment, verdict: Verdict, now: datetime) -> None:
        before, name = environment.status, environment.metadata.name
        ready = condition(
            "Available",
            verdict.available,
            verdict.reason,
            verdict.message,
            now=now,
            generation=environment.metadata.generation,
        )
        conditions = merged(before.conditions, ready)
        if before.available == verdict.available and before.conditions == conditions:
            return
        status = RuntimeEnvironmentStatus(verdict.available, now, conditions)
        # `available: False` is the default and would be left out.
        body = {"status": {**msgspec.to_builtins(status), "available": verdict.available}}
        self._runtimes.observe(await self._client.patch(RUNTIME, name, body, subresource="status"))
        if not verdict.available:
            log.warning("the runtime %s is not available: %s", name, verdict.message)

    async def write_images(self, _: Key) -> None:
        """Write the ConfigMap that the admission policy reads. Raises KubeError."""
        body = {"data": {"images": "\n".join(allowed(self._runtimes.items()))}}
        name, namespace = self._settings.images_config_map, self._settings.system_namespace
        await self._client.apply(CONFIG_MAP, name, body, namespace, manager=names.GROUP)

    def _runtime_changed(self, old: RuntimeEnvironment | None, new: RuntimeEnvironment | None) -> None:
        """Correct a status that someone else wrote, but slowly: it may be another installation's operator."""
        same = old is not None and new is not None and old.spec == new.spec
        if not same:
            self.images_controller.enqueue(_IMAGES)
        if new is not None:
            self.controller.enqueue(key_of(new), after=_CORRECTION if same else 0.0)

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """Reconcile the image's runtimes if its trouble changes, or if it works and is not available yet."""
        before = evidence(old) if old is not None else None
        now = evidence(new) if new is not None else None
        either = now or before
        if either is None or before == now:
            return
        troubled = any(one is not None and one.trouble for one in (before, now))
        for environment in self._runtimes.items():
            if environment.spec.image == either.image and (troubled or not environment.status.available):
                self.controller.enqueue(key_of(environment))
