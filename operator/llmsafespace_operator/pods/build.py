"""Builds a sandbox's Pod and Secret from a recipe. Warm pods and cold starts use the same code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import WARMPOD, Kind
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    Filesystem,
    PoolResources,
    PreloadScript,
    Resources,
    SandboxProfile,
    SeccompProfile,
    SecurityContext,
)
from llmsafespace_operator.pods.volumes import Folder, folders
from llmsafespace_protocol.configuration import (
    AgentConfig,
    EgressForward,
    Listen,
    SandboxLimits,
    Script,
)
from llmsafespace_protocol.quantities import number

CONTAINER = "sandbox"
CONFIG_FOLDER = "/etc/llmsafespace"
CONFIG_FILE = "agent.json"

_START_LIMIT = 120  # maximum seconds from the container's start until a kernel is parked
_EGRESS_PORT = 3128  # on the sandbox's loopback interface
# At this share of the limit the watchdog kills the largest process, before the OOM killer ends the agent.
_OWN_MEMORY = 0.95


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All properties of a sandbox's pod.

    `owner` is a WarmPod or a Sandbox, as `kind` says. The pod has its name and namespace, and is deleted with
    it. `deadline` is the number of seconds after which Kubernetes ends the pod; None until it is claimed.
    """

    kind: Kind[Any]
    owner: Metadata
    image: str
    resources: Resources | PoolResources
    security_level: str = "standard"
    profile: SandboxProfile | None = None
    security_context: SecurityContext = msgspec.field(default_factory=SecurityContext)
    filesystem: Filesystem = msgspec.field(default_factory=Filesystem)
    pool: str = ""
    preload_packages: list[str] = []
    preload_scripts: list[PreloadScript] = []
    sandbox_id: str = ""
    annotations: dict[str, str] = {}  # of the pod
    deadline: int | None = None


def profile_label(profile: SandboxProfile | None, security_level: str) -> str:
    """Return the value of the label `names.PROFILE`, by which network policies select pods."""
    return profile.metadata.name if profile is not None else security_level


def secret(recipe: Recipe, token: str, settings: Settings) -> dict[str, Any]:
    """Return the Secret with the agent's configuration, its token included."""
    return {
        "metadata": {**_metadata(recipe), "name": names.agent_secret(recipe.owner.uid)},
        "type": "Opaque",
        "stringData": {CONFIG_FILE: msgspec.json.encode(_agent(recipe, token, settings)).decode()},
    }


def pod(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Return the Pod. It contains no secret."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,  # the agent, as process 1, ignores SIGTERM
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},  # no DNS server listens there
        "securityContext": _pod_security(recipe),
        "containers": [_container(recipe, settings)],
        "volumes": _volumes(recipe),
    }
    if settings.pod_node_selector:
        spec["nodeSelector"] = settings.pod_node_selector
    if settings.pod_tolerations:
        spec["tolerations"] = settings.pod_tolerations
    priority = settings.warm_priority_class if recipe.kind is WARMPOD else settings.priority_class
    if priority:
        spec["priorityClassName"] = priority
    if recipe.profile is not None and recipe.profile.spec.runtime_class_name:
        spec["runtimeClassName"] = recipe.profile.spec.runtime_class_name
    if recipe.deadline is not None:
        spec["activeDeadlineSeconds"] = recipe.deadline
    metadata = _metadata(recipe)
    if recipe.annotations:
        metadata["annotations"] = recipe.annotations
    return {"metadata": metadata, "spec": spec}


def _metadata(recipe: Recipe) -> dict[str, Any]:
    labels = {
        names.COMPONENT: names.SANDBOX_COMPONENT,
        names.PROFILE: profile_label(recipe.profile, recipe.security_level),
    }
    if recipe.pool:
        labels[names.POOL] = recipe.pool
    if recipe.sandbox_id:
        labels[names.SANDBOX_ID] = recipe.sandbox_id
    owner = {
        "apiVersion": recipe.kind.api_version,
        "kind": recipe.kind.kind,
        "name": recipe.owner.name,
        "uid": recipe.owner.uid,
        "controller": True,
    }
    return {
        "name": recipe.owner.name,
        "namespace": recipe.owner.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    }


def _agent(recipe: Recipe, token: str, settings: Settings) -> AgentConfig:
    memory = int(number(recipe.resources.memory) * _OWN_MEMORY)
    return AgentConfig(
        name=recipe.owner.name,
        token=token,
        listen=Listen(port=names.AGENT_PORT),
        ready_port=names.READY_PORT,
        canaries=list(settings.canaries),
        kernels=[],  # those of the image
        parked=settings.agent.parked,
        preload_packages=recipe.preload_packages,
        preload_scripts=[Script(one.name, one.content) for one in recipe.preload_scripts],
        env=_pip(settings.package_indexes),
        journal_memory=settings.agent.journal_memory,
        journal_disk=settings.agent.journal_disk,
        egress=EgressForward(port=_EGRESS_PORT, proxy=settings.egress_proxy)
        if settings.egress_proxy
        else None,
        limits=SandboxLimits(
            memory_bytes=memory, processes=settings.agent.processes, cgroup="/sys/fs/cgroup"
        ),
    )


def _pip(indexes: Sequence[str]) -> dict[str, str]:
    """Return pip's environment for these indexes. An http:// index is trusted: an administrator chose it."""
    if not indexes:
        return {}
    first, *others = indexes
    plain = [urlsplit(url).netloc for url in indexes if url.startswith("http://")]
    env = {
        "PIP_INDEX_URL": first,
        "PIP_EXTRA_INDEX_URL": " ".join(others),
        "PIP_TRUSTED_HOST": " ".join(plain),
    }
    return {name: value for name, value in env.items() if value}


def _pod_security(recipe: Recipe) -> dict[str, Any]:
    context = recipe.security_context
    return {
        "runAsNonRoot": True,
        "runAsUser": context.run_as_user,
        "runAsGroup": context.run_as_group,
        "fsGroup": context.run_as_group,
        "seccompProfile": _seccomp(recipe),
    }


def _seccomp(recipe: Recipe) -> dict[str, str]:
    """Return the seccomp profile: the SandboxProfile's (an administrator wrote it) before the sandbox's."""
    own = recipe.profile.spec.seccomp_profile if recipe.profile is not None else ""
    if own and own != "RuntimeDefault":
        chosen = SeccompProfile("Localhost", own)
    else:
        chosen = SeccompProfile() if own else recipe.security_context.seccomp_profile
    if chosen.type == "Localhost" and chosen.localhost_profile:
        return {"type": "Localhost", "localhostProfile": chosen.localhost_profile}
    return {"type": "RuntimeDefault"}


def _container(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    resources = {
        "cpu": recipe.resources.cpu,
        "memory": recipe.resources.memory,
        "ephemeral-storage": recipe.resources.ephemeral_storage,
    }
    return {
        "name": CONTAINER,
        "image": recipe.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": ["--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}"],  # the image's entry point is the agent
        "ports": [{"name": "agent", "containerPort": names.AGENT_PORT}],
        "resources": {"limits": resources, "requests": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",  # shows why the agent did not start
        "startupProbe": {
            "tcpSocket": {"port": names.READY_PORT},
            "periodSeconds": 1,
            "failureThreshold": _START_LIMIT,
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            *(folder.mount() for folder in _folders(recipe)),
        ],
    }


def _volumes(recipe: Recipe) -> list[dict[str, Any]]:
    config = {"secretName": names.agent_secret(recipe.owner.uid), "defaultMode": 0o440}
    return [{"name": "config", "secret": config}, *(folder.volume() for folder in _folders(recipe))]


def _folders(recipe: Recipe) -> list[Folder]:
    return folders(recipe.filesystem, recipe.profile, recipe.resources.ephemeral_storage)
