"""Every kind that is read or written: its path in the API server, and its type here."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from llmsafespace_kube.resources import kubernetes, types
from llmsafespace_kube.resources.names import GROUP, VERSION

T = TypeVar("T", bound=msgspec.Struct)


class Kind(msgspec.Struct, Generic[T], frozen=True):
    """A resource type of the API server, and the type that its objects are decoded into."""

    group: str  # "" is the core group
    version: str
    kind: str
    plural: str
    type: type[T]
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The value of an object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Return the URL path of the collection (without a name) or of one object."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(parts)


SANDBOX = Kind(GROUP, VERSION, "Sandbox", "sandboxes", types.Sandbox)
PROFILE = Kind(GROUP, VERSION, "SandboxProfile", "sandboxprofiles", types.SandboxProfile)
RUNTIME = Kind(
    GROUP, VERSION, "RuntimeEnvironment", "runtimeenvironments", types.RuntimeEnvironment, namespaced=False
)
WARMPOOL = Kind(GROUP, VERSION, "WarmPool", "warmpools", types.WarmPool)
WARMPOD = Kind(GROUP, VERSION, "WarmPod", "warmpods", types.WarmPod)
POD = Kind("", "v1", "Pod", "pods", kubernetes.Pod)
SECRET = Kind("", "v1", "Secret", "secrets", kubernetes.Secret)
EVENT = Kind("events.k8s.io", "v1", "Event", "events", kubernetes.Event)
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases", kubernetes.AnyObject)
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", kubernetes.AnyObject)
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps", kubernetes.AnyObject)
WEBHOOK = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "ValidatingWebhookConfiguration",
    "validatingwebhookconfigurations",
    kubernetes.WebhookConfiguration,
    namespaced=False,
)
