"""Starts a sandbox's pod: its Secret, then itself."""

from __future__ import annotations

from llmsafespace_operator.kube.client import KubeClient
from llmsafespace_operator.kube.errors import AlreadyExists
from llmsafespace_operator.pods import build
from llmsafespace_operator.resources.kinds import POD, SECRET
from llmsafespace_operator.resources.kubernetes import Pod
from llmsafespace_operator.resources.settings import Settings


class NameTaken(Exception):
    """A pod of the same name belongs to somebody else, perhaps to an earlier owner of this name."""


async def start(client: KubeClient, recipe: build.Recipe, token: str, settings: Settings) -> Pod:
    """Create what is not there yet; safe to repeat after an answer was lost.

    A Secret that is there is an earlier attempt's, or an earlier owner's, and nobody reads Secrets to tell:
    it is made anew. Raises KubeError, NameTaken.
    """
    name, namespace = recipe.owner.name, recipe.owner.namespace
    secret = build.secret(recipe, token, settings)
    try:
        await client.create(SECRET, secret, namespace)
    except AlreadyExists:
        await client.delete(SECRET, name, namespace)
        await client.create(SECRET, secret, namespace)
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
