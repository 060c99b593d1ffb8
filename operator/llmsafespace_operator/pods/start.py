"""Starts a sandbox's pod: creates its Secret, then the Pod."""

from __future__ import annotations

import contextlib

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import AlreadyExists
from llmsafespace_kube.resources.kinds import POD, SECRET
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_operator.pods import build


class NameTaken(Exception):
    """A pod of this name belongs to another object, perhaps to an earlier one of the same name."""


async def start(client: KubeClient, recipe: build.Recipe, token: str, settings: Settings) -> Pod:
    """Create Secret and Pod if they do not exist; return the Pod. It is safe to repeat a call.

    The Secret's name contains its owner's uid, so an existing one is of an earlier try. If someone else
    created it, its token is wrong and nobody can bind the pod. Raises KubeError and NameTaken.
    """
    name, namespace = recipe.owner.name, recipe.owner.namespace
    with contextlib.suppress(AlreadyExists):
        await client.create(SECRET, build.secret(recipe, token, settings), namespace)
    try:
        return await client.create(POD, build.pod(recipe, settings), namespace)
    except AlreadyExists:
        pod = await client.get(POD, name, namespace)
        if not owned(pod, recipe.owner.uid):
            raise NameTaken(f"another pod has the name {name}") from None
        return pod


def owned(pod: Pod, uid: str) -> bool:
    """Whether the pod belongs to the object with this uid."""
    return any(owner.uid == uid for owner in pod.metadata.owner_references)
