"""`python -m benchmarks`: this gateway beside its peers, in one run, as one table.

Rows are independent: a target that hangs or dies costs its cell, is ended and started again. The table so
far is printed however the run ends, and results are written as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import LIMIT, Bench, Values, failed
from benchmarks.peers import EnterpriseGateway, JupyterPeer, KernelGateway, without_orjson
from benchmarks.rows import ROWS
from benchmarks.table import shown, table
from benchmarks.targets import HttpTarget, ThisGateway

RESULTS = Path(__file__).parent / "results"
Row = Callable[[Bench], Awaitable[Values]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a look, not a measurement")
    parser.add_argument("--no-peers", action="store_true", help="without Kernel and Enterprise Gateway")
    parser.add_argument(
        "--against", type=Path, metavar="PATH", help="another checkout (with a .venv of its own) beside this"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one target's part of a row")
    parser.add_argument("--json", type=Path, default=RESULTS / "latest.json", help="where results go")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows) - set(ROWS):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    if chosen.against is not None:
        chosen.against = chosen.against.resolve()
        if not (chosen.against / ".venv/bin/python").exists():
            parser.error(f"{chosen.against} has no .venv: run make install there first")
    return chosen


def write(path: Path, about: Mapping[str, Any], results: Mapping[str, Values]) -> None:
    """Everything so far; the file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + ".new")
    staging.write_text(json.dumps({**about, "rows": results}, indent=2))
    staging.rename(path)


async def run_rows(
    bench: Bench, rows: Mapping[str, Row], results: dict[str, Values], note: Callable[[], None]
) -> None:
    """Measure each row by itself; `note` is called after each."""
    for name, row in rows.items():
        began = time.monotonic()
        print(f"{name} …", end=" ", flush=True, file=sys.stderr)
        try:
            results[name] = await row(bench)
        except Exception as error:  # of the row itself: a target's are in its cell
            results[name] = failed(error)
        print(f"{shown(results[name])}  [{time.monotonic() - began:.1f} s]", file=sys.stderr)
        note()


async def has_orjson(target: ThisGateway) -> bool:
    """Whether the kernels of a gateway's sandboxes serialize with orjson."""
    sandbox = await target.sandbox()
    kernel = await target.connect(sandbox["kernelId"])
    try:
        code = "import jupyter_client.session as s; print(getattr(s, 'orjson', None) and 'yes' or '')"
        return bool((await kernel.execute(code)).stdout > 1)
    finally:
        await kernel.close()
        await target.end(sandbox["id"])


async def _peers(folder: Path, orjson: bool) -> list[HttpTarget]:
    peers: list[JupyterPeer] = [KernelGateway(), EnterpriseGateway(RESULTS / "enterprise-gateway", orjson)]
    for peer in peers:
        if peer.missing is None:
            try:
                await peer.start()
            except Exception as error:
                peer.missing = str(error)[:200]
        if peer.missing is not None:
            print(f"{peer.name} is left out: {peer.missing}", file=sys.stderr)
    return list(peers)


async def measure(arguments: argparse.Namespace, folder: Path, results: dict[str, Values]) -> list[str]:
    """Start the targets, run the rows, stop the targets; the names of the columns beside ours."""
    ours = ThisGateway(_folder(folder, "ours"))
    against = None
    if arguments.against is not None:
        against = ThisGateway(_folder(folder, "against"), checkout=arguments.against, name="before")
    print("starting the gateways; the first start on a machine prepares a runtime …", file=sys.stderr)
    async with contextlib.AsyncExitStack() as stack:
        for target in (ours, against):
            if target is not None:
                stack.push_async_callback(target.stop)
                await target.start()
        orjson = await has_orjson(ours)
        if not orjson:  # peers' kernels, and jupyter_client's, are children of this process
            os.environ |= without_orjson(folder / "no-orjson")
        peers = [] if arguments.no_peers else await _peers(folder, orjson)
        for peer in peers:
            stack.push_async_callback(peer.stop)
        bench = Bench(ours, peers, 0.2 if arguments.quick else 1.0, against, arguments.limit)
        about = {
            "cores": os.cpu_count(),
            "orjson": orjson,
            "left out": {peer.name: peer.missing for peer in peers if peer.missing is not None},
        }
        chosen = {name: ROWS[name] for name in arguments.rows or ROWS}
        columns = [target.name for target in bench.gateways[1:]]
        try:
            await run_rows(bench, chosen, results, lambda: write(arguments.json, about, results))
        finally:
            described = {name: (row.__doc__ or name).strip().rstrip(".") for name, row in ROWS.items()}
            print(table(results, described, ours.name, columns), flush=True)
    return columns


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o755)
    return folder


def main() -> None:
    """Run, print the table, write the JSON."""
    arguments = _arguments()
    results: dict[str, Values] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it gets the table so far
    with tempfile.TemporaryDirectory(prefix="lsp-bench-") as name:
        os.chmod(name, 0o755)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(measure(arguments, Path(name), results))
    print(f"written to {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
