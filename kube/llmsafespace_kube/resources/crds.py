"""The CustomResourceDefinitions: schemas from the types, and CEL rules for what a schema cannot express."""

from __future__ import annotations

from typing import Any

import msgspec

from llmsafespace_kube.resources import kinds, types
from llmsafespace_kube.resources.kinds import Kind
from llmsafespace_kube.resources.schema import Rule, Rules, schema_of

_ORDER = "{'Pending': 0, 'Creating': 1, 'Running': 2, 'Terminating': 3, 'Terminated': 4, 'Failed': 4}"
_PATH = "path.startsWith('/') && path != '/' && !path.contains('..')"


def _paths(field: str) -> Rule:
    return Rule(
        f"!has(self.{field}) || self.{field}.all(path, {_PATH})",
        f"{field} must be absolute, without '..', and not '/': name the folders, as /workspace",
        f".{field}",
    )


def _short_name(longest: int, why: str) -> Rule:
    return Rule(
        f"self.metadata.name.size() <= {longest}",
        f"the name may have at most {longest} characters, because {why}: choose a shorter one",
    )


RULES: Rules = {
    types.SandboxSpec: [
        Rule("self == oldSelf", "the spec of a Sandbox cannot be changed: delete it and make another")
    ],
    types.SandboxStatus: [
        Rule(
            f"self.phase == oldSelf.phase || {_ORDER}[self.phase] > {_ORDER}[oldSelf.phase]",
            "a phase only goes forward, and Terminated and Failed are final: make another Sandbox",
            ".phase",
        )
    ],
    types.Storage: [
        Rule("!self.persistent", "persistent storage is not supported yet: leave it out", ".persistent")
    ],
    types.Filesystem: [_paths("writablePaths")],
    types.FilesystemConfig: [_paths("readOnlyPaths"), _paths("writablePaths")],
    types.SeccompProfile: [
        Rule(
            "(self.type == 'Localhost') == has(self.localhostProfile)",
            "type Localhost needs localhostProfile, and no other type has it: set both or neither",
            ".localhostProfile",
        )
    ],
    types.NetworkRule: [
        Rule("has(self.domain) != has(self.cidr)", "a rule has either a domain or a cidr: write two rules")
    ],
    types.SandboxProfile: [_short_name(63, "pods are labelled with it")],
    types.WarmPool: [_short_name(54, "the names of its WarmPods begin with it")],
    types.WarmPoolSpec: [
        Rule(
            "self.maxSize == 0 || self.maxSize >= self.minSize",
            "maxSize must be at least minSize, or 0 for no limit: raise maxSize or lower minSize",
            ".maxSize",
        )
    ],
    types.WarmPodSpec: [
        Rule(
            "!has(oldSelf.claim) || (has(self.claim) && self.claim == oldSelf.claim)",
            "this WarmPod is claimed, and a claim is never changed: claim another",
            ".claim",
        ),
        Rule("self.poolRef == oldSelf.poolRef", "a WarmPod stays with its pool: delete it", ".poolRef"),
    ],
}


class Column(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A column of `kubectl get`; priority 1 shows it with `-o wide` only."""

    name: str
    json_path: str
    type: str = msgspec.field(default="string")
    priority: int = 0


class Resource(msgspec.Struct, frozen=True):
    """The parts of a CustomResourceDefinition other than its schema."""

    kind: Kind[Any]
    short_name: str
    columns: tuple[Column, ...]
    scale: dict[str, str] | None = None


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

RESOURCES = (
    Resource(
        kinds.SANDBOX,
        "sb",
        (
            Column("Runtime", ".spec.runtime"),
            Column("Phase", ".status.phase"),
            Column("Start", ".status.startKind"),
            Column("End", ".status.end"),
            _AGE,
            Column("User", ".spec.user", priority=1),
            Column("Pod", ".status.podName", priority=1),
            Column("Node", ".status.nodeName", priority=1),
            Column("Endpoint", ".status.endpoint", priority=1),
            Column("Message", ".status.message", priority=1),
        ),
    ),
    Resource(
        kinds.PROFILE,
        "sbp",
        (
            Column("Language", ".spec.language"),
            Column("Level", ".spec.securityLevel"),
            Column("Runtime Class", ".spec.runtimeClassName"),
            _AGE,
        ),
    ),
    Resource(
        kinds.RUNTIME,
        "rte",
        (
            Column("Language", ".spec.language"),
            Column("Version", ".spec.version"),
            Column("Available", ".status.available", "boolean"),
            _AGE,
            Column("Image", ".spec.image", priority=1),
            Column("Validated", ".status.lastValidated", "date", priority=1),
        ),
    ),
    Resource(
        kinds.WARMPOOL,
        "wp",
        (
            Column("Runtime", ".spec.runtime"),
            Column("Min", ".spec.minSize", "integer"),
            Column("Max", ".spec.maxSize", "integer"),
            Column("Available", ".status.availablePods", "integer"),
            Column("Assigned", ".status.assignedPods", "integer"),
            Column("Pending", ".status.pendingPods", "integer"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            _AGE,
            Column("Level", ".spec.securityLevel", priority=1),
            Column("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
        ),
        scale={
            "specReplicasPath": ".spec.minSize",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    ),
    Resource(
        kinds.WARMPOD,
        "wpod",
        (
            Column("Pool", ".spec.poolRef.name"),
            Column("Phase", ".status.phase"),
            Column("Sandbox", ".spec.claim.sandbox.name"),
            _AGE,
            Column("Claimed", ".spec.claim.time", "date", priority=1),
            Column("Node", ".status.nodeName", priority=1),
            Column("Message", ".status.message", priority=1),
        ),
    ),
)


def definition(resource: Resource) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one kind."""
    kind = resource.kind
    subresources: dict[str, Any] = {"status": {}}
    if resource.scale:
        subresources["scale"] = resource.scale
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": ["llmsafespace"],
            },
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": [_column(each) for each in resource.columns],
                    "schema": {"openAPIV3Schema": schema_of(kind.type, RULES)},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    entry = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    return {**entry, "priority": column.priority} if column.priority else entry
