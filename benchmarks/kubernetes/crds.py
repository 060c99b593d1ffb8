"""The custom resources' definitions: those that the cluster lacks are made, and stay."""

from __future__ import annotations

import sys

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import AlreadyExists, Forbidden, NotFound
from llmsafespace_kube.resources.crds import RESOURCES, definition
from llmsafespace_kube.resources.kinds import Kind
from llmsafespace_kube.resources.kubernetes import AnyObject

_CRD = Kind(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", AnyObject,
    namespaced=False,
)  # fmt: skip


async def ensure(client: KubeClient) -> list[str]:
    """Make the missing definitions; their names. Exits with what to do when it may not."""
    made = []
    for resource in RESOURCES:
        wanted = definition(resource)
        name = str(wanted["metadata"]["name"])
        try:
            await client.get(_CRD, name)
        except NotFound:
            try:
                await client.create(_CRD, wanted)
            except AlreadyExists:
                continue
            except Forbidden as error:
                raise SystemExit(
                    f"the cluster has no {name}, and this user may not make it ({error}); "
                    "as one who may: kubectl apply -f deploy/helm/llmsafespace/crds"
                ) from error
            made.append(name)
    if made:
        print(f"made {', '.join(made)}, which stay: kubectl delete crd … removes them", file=sys.stderr)
    return made
