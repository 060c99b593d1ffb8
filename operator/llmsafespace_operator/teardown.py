"""Ends every sandbox and pool of an installation: the last thing before its operator goes.

Sandboxes and WarmPools have finalizers of the operator. Whatever were left of them without one could not be
deleted any more, nor could its namespace.
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
    """Some objects are still there; the message names them and says what to do."""


async def teardown(client: KubeClient, settings: Settings, limit: float = LIMIT) -> None:
    """Delete all that the operator serves, return when it is gone, and leave no policy of a profile behind.

    The operator has to run meanwhile. Raises Leftovers after `limit` seconds, and KubeError when the API
    server refuses.
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
    """What one round found, or why it could not look now."""
    try:
        return await _round(client, settings)
    except (Unavailable, TooManyRequests) as error:
        return [str(error)]


async def _round(client: KubeClient, settings: Settings) -> list[str]:
    """Delete whatever is not being deleted yet; names what was found."""
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
    # Pools first, lest they refill.
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
    """The exit status: 0, or 1 and one line on stderr."""
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
