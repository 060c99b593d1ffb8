"""Releases of the chart, from the images that `make images` builds; gone before other tests need the room."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.cluster.chart.support_chart import Helm, Release, releasing
from tests.cluster.chart.support_outside import Outside, serving
from tests.cluster.chart.support_volume import volume
from tests.cluster.conftest import Cluster, Images
from tests.cluster.support import Kubectl, Namespaces


@pytest.fixture(scope="package")
def helm(cluster: Cluster, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    if not shutil.which("helm"):
        pytest.skip("there is no helm on the PATH")
    version = kubectl.json("version")["serverVersion"]["gitVersion"]
    return Helm(cluster.kubeconfig, tmp_path_factory.mktemp("helm"), version)


@pytest.fixture(scope="package")
def make_release(
    helm: Helm, kubectl: Kubectl, crds: None, images: Images
) -> Iterator[Callable[..., Release]]:
    """`make_release(pool_size, **values)`: an installed release of its own, gone after the tests."""
    registry_and_tag = re.fullmatch(r"(.+)/llmsafespace-gateway:([^:]+)", images["gateway"])
    if registry_and_tag is None:
        pytest.skip(f"the chart cannot name the image {images['gateway']}")
    for name in ("operator", "egress", "python"):
        images[name]  # skips where it is not there
    registry, tag = registry_and_tag.groups()
    with ExitStack() as stack:

        def make(pool_size: int, **values: Any) -> Release:
            name = f"test-{secrets.token_hex(3)}"
            image = {"registry": registry, "tag": tag}
            return stack.enter_context(releasing(helm, kubectl, name, image, pool_size, values))

        yield make


@pytest.fixture(scope="package")
def outside(cluster: Cluster) -> Iterator[Outside]:
    with serving(cluster.host) as servers:
        yield servers


@pytest.fixture(scope="package")
def storage_class(kubectl: Kubectl, images: Images) -> Iterator[str]:
    """With one volume."""
    namespaces = Namespaces(kubectl)
    try:
        with volume(kubectl, namespaces("volume"), images["python"]) as made:
            yield made
    finally:
        namespaces.remove_all()


@pytest.fixture(scope="package")
def release(storage_class: str, outside: Outside, make_release: Callable[..., Release]) -> Release:
    """One release for all tests that leave it working. Its package index is on this machine."""
    made = make_release(
        2,
        gateway={"persistence": {"enabled": True, "storageClass": storage_class}},
        egress={"replicas": 1, "indexes": [outside.index_url]},
    )
    made.await_warm(2)
    return made
