"""How the operator and the gateway hold out, and how long a person waits.

Needs KUBECONFIG of a cluster that this machine alone uses. Everything is made, and removed afterwards;
only the definitions of the custom resources, where the cluster lacks them, stay.

Starts: real pods of the runtime image, warm and cold ones in turn: from the request to the first result.

The other runs need no pod that really runs, but root (for a route to the fake pods), and KWOK that plays the
nodes annotated kwok.x-k8s.io/node=fake.

Arrivals: sandboxes are asked for at random with a given rate, stay five seconds once they are bound, and
are deleted; the pool is as large as ten seconds of arrivals and is refilled meanwhile. Scale: so many
sandboxes and warm pods stay, and nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.kubernetes import crds
from benchmarks.kubernetes.fake_nodes import fake_nodes, needed
from benchmarks.kubernetes.installation import Installation, installed
from benchmarks.kubernetes.meters import flat
from benchmarks.kubernetes.runs import at_rate, at_scale
from benchmarks.kubernetes.starts import starts
from llmsafespace_kube.api.client import KubeClient

RESULTS = Path(__file__).parents[1] / "results" / "kubernetes.json"
POOL_SECONDS = 10  # of arrivals


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.kubernetes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rates", type=float, nargs="*", default=[5, 25, 45], help="arrivals per second")
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals, for each rate")
    parser.add_argument("--sandboxes", type=int, default=10_000, help="for the scale run; 0 leaves it out")
    parser.add_argument("--warm", type=int, default=1000, help="warm pods beside them")
    parser.add_argument("--starts", type=int, default=30, help="of real pods, warm and cold each; 0: none")
    parser.add_argument("--image", default="localhost/llmsafespace-python:dev", help="of the real pods")
    parser.add_argument("--quick", action="store_true", help="a look at whether it works: a handful of each")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where results go")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rates, chosen.seconds, chosen.sandboxes, chosen.warm, chosen.starts = [1.0], 5.0, 5, 3, 3
    return chosen


async def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything that was asked for; results by name."""
    results: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as stack:
        client = await KubeClient.connect(user_agent="llmsafespace-bench")
        stack.push_async_callback(client.close)
        if await crds.ensure(client):
            await asyncio.sleep(2)  # until the server serves them
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        if chosen.starts:
            print(f"{chosen.starts} real pods, warm and cold …", file=sys.stderr)
            async with installed(folder / "real", client, http, chosen.image) as installation:
                results["starts"] = await starts(installation, chosen.starts)
        if chosen.rates or chosen.sandboxes:
            await stack.enter_async_context(fake_nodes(client, needed(_largest(chosen))))
            installation = await stack.enter_async_context(installed(folder / "fake", client, http))
            await _fakes(chosen, installation, results)
    return results


def _largest(chosen: argparse.Namespace) -> int:
    largest: int = max([chosen.sandboxes + 2 * chosen.warm, *(int(rate * 30) for rate in chosen.rates)])
    return largest


async def _fakes(chosen: argparse.Namespace, installation: Installation, results: dict[str, Any]) -> None:
    for rate in chosen.rates:
        print(f"{rate:g}/s for {chosen.seconds:g} s …", file=sys.stderr)
        results[f"{rate:g}/s"] = await at_rate(
            installation, rate, chosen.seconds, warm=int(rate * POOL_SECONDS)
        )
    if chosen.sandboxes:
        print(f"{chosen.sandboxes} sandboxes and {chosen.warm} warm pods …", file=sys.stderr)
        results["scale"] = await at_scale(installation, chosen.sandboxes, chosen.warm)


def shown(results: dict[str, Any]) -> str:
    """A block for each run, a line for each figure."""
    blocks = [
        "\n".join([f"{run}:", *(f"  {name}: {flat(value)}" for name, value in values.items())])
        for run, values in results.items()
    ]
    return "\n\n".join(blocks)


def main() -> None:
    """Run, print the results, write them as JSON."""
    chosen = _arguments()
    with tempfile.TemporaryDirectory(prefix="lsp-bench-") as name:
        results = asyncio.run(measure(chosen, Path(name)))
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps({"cores": os.cpu_count(), "runs": results}, indent=2))
    print(shown(results))
    print(f"written to {chosen.json}", file=sys.stderr)


main()
