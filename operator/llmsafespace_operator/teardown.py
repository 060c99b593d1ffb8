"""Ends every sandbox and pool of an installation, before its operator is uninstalled.

Sandboxes and WarmPools have finalizers that only the operator removes. Without an operator, objects that are
left could not be deleted, and neither could their namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmsafespace_kube.api.client import KubeClient, KubeError, TooManyRequests, Unavailable
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import NETWORK_POLICY, SANDBOX, WARMPOD, WARMPOOL, Kind
from llmsafespace_kube.resources.settings import Settings, SettingsError, load
from llmsafespace_operator.environments.policies import COMPONENT

LIMIT = 180.0  # seconds
PAUSE = 1.0
POLICIES = f"{names.COMPONENT}={COMPONENT}"


class Leftovers(Exception):
    """Some objects still exist; the message names them and says what to do."""


async def teardown(client: KubeClient, settings: Settings, limit: float = LIMIT) -> None:
    """Delete all objects that the operator serves, wait until they are gone, then delete profiles' policies.

    The operator must be running. Raises Leftovers after `limit` seconds, and KubeError if the API server
    refuses.
    """
    left: list[str] = []
    try:
        async with asyncio.timeout(limit):
            while left := await _found(client, settings):  # noqa: ASYNC110
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        raise Leftovers(
            f"still there after {limit:g} s: {', '.join(left[:10])}{' …' if left[10:] else ''}. "
            "Does the operator run? Its log says why they stay; docs/kubernetes.md, 'Stuck finalizer'"
        ) from None
    for namespace in {*settings.pool_namespaces, *settings.sandbox_namespaces}:
        found, _ = await client.list(NETWORK_POLICY, namespace, label_selector=POLICIES)
        for policy in found:
            await client.delete(NETWORK_POLICY, policy.metadata.name, namespace)


async def _found(client: KubeClient, settings: Settings) -> list[str]:
    """Return the objects that one round found, or the error of the API server."""
    try:
        return await _round(client, settings)
    except (Unavailable, TooManyRequests) as error:
        return [str(error)]


async def _round(client: KubeClient, settings: Settings) -> list[str]:
    """Delete all objects that are not being deleted yet; return the names of those that were found."""
    found = []
    for kind, namespace in _places(settings):
        items, _ = await client.list(kind, namespace)
        for item in items:
            metadata = item.metadata
            found.append(f"{kind.kind} {namespace}/{metadata.name}")
            if metadata.deletion_timestamp is None:
                await client.delete(kind, metadata.name, namespace, uid=metadata.uid)
    return found


def _places(settings: Settings) -> Iterator[tuple[Kind[Any], str]]:
    # Pools first: otherwise they would create new warm pods.
    for namespace in settings.pool_namespaces:
        yield WARMPOOL, namespace
    for namespace in settings.sandbox_namespaces:
        yield SANDBOX, namespace
    for namespace in settings.pool_namespaces:
        yield WARMPOD, namespace


async def _run(path: Path) -> None:
    settings = load(path)
    client = await KubeClient.connect(user_agent="llmsafespace-teardown")
    try:
        await teardown(client, settings)
    finally:
        await client.close()


def main() -> int:
    """Run the command. Returns the exit status: 0, or 1 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="llmsafespace_operator.teardown", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the operator's settings")
    try:
        asyncio.run(_run(parser.parse_args().config))
    except (Leftovers, KubeError, SettingsError) as error:
        print(f"teardown: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
