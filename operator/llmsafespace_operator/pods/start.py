"""Starts a sandbox's pod: its Secret, then itself."""

from __future__ import annotations

import contextlib

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import AlreadyExists
from llmsafespace_kube.resources.kinds import POD, SECRET
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_operator.pods import build


class NameTaken(Exception):
    """A pod of the same name belongs to somebody else, perhaps to an earlier owner of this name."""


async def start(client: KubeClient, recipe: build.Recipe, token: str, settings: Settings) -> Pod:
    """Create what is not there yet; safe to repeat after an answer was lost. Raises KubeError, NameTaken.

    The Secret's name is its owner's uid, so one that is there is of an earlier attempt. If somebody else
    made it, its token is wrong, and nobody will bind this pod.
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
    """Whether the pod was made for the object with this uid."""
    return any(owner.uid == uid for owner in pod.metadata.owner_references)
