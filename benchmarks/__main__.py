"""`python -m benchmarks`: this gateway beside its peers, in one run, as one table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import KG, OURS, RAW, ROWS, Bench, Values
from benchmarks.targets import KernelGateway, ThisGateway

RESULTS = Path(__file__).parent / "results"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a look, not a measurement")
    parser.add_argument("--no-peers", action="store_true", help="without Kernel Gateway")
    parser.add_argument("--json", type=Path, default=RESULTS / "latest.json", help="where results go")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows) - set(ROWS):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    return chosen


def shown(value: Any) -> str:
    """A value of any row as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return f"{shown(value[0])} ({shown(value[1])})"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def ratio(values: Values, other: str) -> str:
    """This gateway's first number over `other`'s."""
    mine, theirs = (_first(values.get(name)) for name in (OURS, other))
    return f"{mine / theirs:.2f}" if mine is not None and theirs else "-"


def _first(value: Any) -> float | None:
    if isinstance(value, dict):
        value = next(iter(value.values()))
    if isinstance(value, tuple | list):
        value = value[0]
    return value


def table(results: dict[str, Values]) -> str:
    """All rows, one line each."""
    columns = ["row", OURS, RAW, KG, f"/ {RAW}", f"/ {KG}"]
    lines = [columns]
    for row, values in results.items():
        cells = [shown(values[name]) if name in values else "-" for name in (OURS, RAW, KG)]
        about = (ROWS[row].__doc__ or row).strip().rstrip(".")
        lines.append([about, *cells, ratio(values, RAW), ratio(values, KG)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Values]:
    """Start the targets, run the rows, stop the targets."""
    ours = ThisGateway(folder)
    peer = None if arguments.no_peers else KernelGateway()
    results: dict[str, Values] = {}
    print("starting the gateways; the first start on a machine prepares a runtime …", file=sys.stderr)
    try:
        await ours.start()
        if peer is not None:
            await peer.start()
        bench = Bench(ours, peer, 0.2 if arguments.quick else 1.0)
        for row in arguments.rows or ROWS:
            began = time.monotonic()
            print(f"{row} …", end=" ", flush=True, file=sys.stderr)
            results[row] = await ROWS[row](bench)
            print(f"{shown(results[row])}  [{time.monotonic() - began:.1f} s]", file=sys.stderr)
    finally:
        await ours.stop()
        if peer is not None:
            await peer.stop()
    return results


def main() -> None:
    """Run, print the table, write the JSON."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="lsp-bench-") as name:
        os.chmod(name, 0o755)
        results = asyncio.run(measure(arguments, Path(name)))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": results}, indent=2))
    print(table(results))
    print(f"written to {arguments.json}", file=sys.stderr)


main()
