"""Reconciles SandboxProfiles: their Ready condition and their NetworkPolicies."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.errors import NotFound
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.conditions import condition, merged
from llmsafespace_kube.resources.kinds import NETWORK_POLICY, PROFILE, Kind
from llmsafespace_kube.resources.kubernetes import AnyObject
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import SandboxProfile
from llmsafespace_operator.environments import policies

_RUNTIME_CLASS = Kind("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", AnyObject, namespaced=False)
_SWEEP: Key = ("", "")
_RECHECK = 60.0  # seconds; RuntimeClasses are not watched
_LEVELS = {"standard", "high", "custom"}


class ProfileReconciler:
    """Reconciles profiles. Call `follow` once, before the informers start."""

    def __init__(self, client: KubeClient, profiles: Informer[SandboxProfile], settings: Settings) -> None:
        self._client = client
        self._profiles = profiles
        self._settings = settings
        self._policies: dict[
            Key, dict[str, Any] | None
        ] = {}  # as last written; None: exists, content unknown
        self.controller = Controller("profile", self.reconcile, workers=2)

    def follow(self) -> None:
        """Register for changes. Call it before the informers start."""
        self._profiles.on_change(self._changed)

    def sweep(self) -> None:
        """Check the existing policies: profiles may have changed while this process was not the leader."""
        self.controller.enqueue(_SWEEP)

    async def _sweep(self) -> None:
        for namespace in self._everywhere():
            selector = f"{names.COMPONENT}={policies.COMPONENT}"
            found, _ = await self._client.list(NETWORK_POLICY, namespace, label_selector=selector)
            for policy in found:
                self._policies[key_of(policy)] = None
                self.controller.enqueue(policies.profile_of(policy.metadata.name))

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one profile; return the seconds until the next check. Raises KubeError."""
        if key == _SWEEP:
            await self._sweep()
            return None
        profile = self._profiles.get(key[1], key[0])
        fault = await self._fault(profile) if profile is not None else None
        wanted: set[str] = set()
        if profile is not None and fault is None and policies.cidr_rules(profile):
            wanted = policies.namespaces(profile, self._settings)
        for namespace in self._everywhere():
            await self._keep(key, profile if namespace in wanted else None, namespace)
        if profile is None:
            return None
        await self._write(profile, fault)
        return _RECHECK if profile.spec.runtime_class_name else None

    async def _fault(self, profile: SandboxProfile) -> tuple[str, str] | None:
        """Return why the profile cannot be used: a condition's reason and message. None: it can."""
        if self._is_ambiguous(profile):
            return (
                "NameTaken",
                "another profile or security level has this name, and network policies select pods by it; "
                "give the profile another name",
            )
        bad = policies.bad_cidr(profile)
        if bad is not None:
            return "InvalidCidr", bad
        runtime_class = profile.spec.runtime_class_name
        if runtime_class and not await self._exists(runtime_class):
            return names.NO_RUNTIME_CLASS, f"there is no RuntimeClass {runtime_class} in the cluster"
        return None

    def _is_ambiguous(self, profile: SandboxProfile) -> bool:
        """Whether pods of a system profile or of a security level have the same profile label."""
        meta = profile.metadata
        if meta.namespace == self._settings.system_namespace or not policies.cidr_rules(profile):
            return False
        return (
            meta.name in _LEVELS or self._profiles.get(meta.name, self._settings.system_namespace) is not None
        )

    async def _exists(self, runtime_class: str) -> bool:
        try:
            await self._client.get(_RUNTIME_CLASS, runtime_class)
        except NotFound:
            return False
        return True

    async def _keep(self, key: Key, profile: SandboxProfile | None, namespace: str) -> None:
        """Apply the profile's policy in a namespace; if `profile` is None, delete it."""
        name = policies.policy_name(key)
        where = (namespace, name)
        if profile is None:
            if where in self._policies:
                await self._client.delete(NETWORK_POLICY, name, namespace)
                del self._policies[where]
            return
        body = policies.policy(profile)
        if self._policies.get(where) != body:
            self._policies[where] = None
            await self._client.apply(NETWORK_POLICY, name, body, namespace, manager=names.GROUP)
            self._policies[where] = body

    async def _write(self, profile: SandboxProfile, fault: tuple[str, str] | None) -> None:
        reason, message = fault or ("Valid", "")
        ready = condition("Ready", fault is None, reason, message, now=datetime.now(UTC))
        conditions = merged(profile.status.conditions, ready)
        if conditions == profile.status.conditions:
            return
        meta = profile.metadata
        body = {"status": {"conditions": msgspec.to_builtins(conditions)}}
        self._profiles.observe(
            await self._client.patch(PROFILE, meta.name, body, meta.namespace, subresource="status")
        )

    def _everywhere(self) -> list[str]:
        return sorted({*self._settings.pool_namespaces, *self._settings.sandbox_namespaces})

    def _changed(self, old: SandboxProfile | None, new: SandboxProfile | None) -> None:
        changed = new or old
        if changed is None or (old is not None and new is not None and old.spec == new.spec):
            return
        self.controller.enqueue(key_of(changed))
        for profile in self._profiles.items():
            if profile.metadata.name == changed.metadata.name:
                self.controller.enqueue(key_of(profile))
