"""What the subcommands share: the gateway's options, `--env K=V`, progress bars."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmsafespace.errors import InvalidRequest
from llmsafespace.settings import KEY_VARIABLE, URL_VARIABLE, explicit_endpoint

Subparsers = Any  # argparse has no public name for what add_subparsers returns


def command(
    commands: Subparsers, name: str, act: Callable[[argparse.Namespace], int], summary: str, examples: str
) -> argparse.ArgumentParser:
    """A subcommand that speaks to a gateway."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(act=act)
    group = parser.add_argument_group("gateway")
    group.add_argument("--url", help="the gateway's URL (default: $LLMSAFESPACE_API_URL)")
    group.add_argument("--key", help="the API key (default: $LLMSAFESPACE_API_KEY)")
    return parser


def where(options: argparse.Namespace) -> dict[str, str | None]:
    """The gateway's options as the SDK's arguments."""
    return {"api_url": options.url, "api_key": options.key}


def pair(text: str) -> tuple[str, str]:
    """`K=V`; a bare `K` takes the value from this environment."""
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if not equals:
        if name not in os.environ:
            raise argparse.ArgumentTypeError(f"{name} is not set here; write {name}=VALUE")
        value = os.environ[name]
    return name, value


def add_creation(parser: argparse.ArgumentParser) -> None:
    """The options of a new sandbox."""
    parser.add_argument(
        "--runtime", help="as python:3.12 or bash (default: the pool's, or the gateway's own)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=300.0, help="seconds that one run may take (default: 300)"
    )
    parser.add_argument(
        "--env", type=pair, action="append", default=[], metavar="NAME=VALUE", help="an environment variable"
    )
    parser.add_argument("--warm-pool", metavar="NAME", help="take it from this warm pool")
    parser.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="a package to install first"
    )


def creation(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a new sandbox as the SDK's arguments."""
    return {
        "runtime": options.runtime,
        "timeout": options.timeout,
        "env": dict(options.env),
        "packages": list(options.package),
        "warm_pool": options.warm_pool,
        **where(options),
    }


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def print_any_text() -> None:
    """Let standard output take every character: what its encoding lacks is written as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def source_text(name: str) -> str:
    """The code in a file, or on standard input (`-`). Raises InvalidRequest unless it is UTF-8."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return io.TextIOWrapper(io.BytesIO(data), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        where = "standard input" if name == "-" else name
        problem = f"byte {error.start}: {error.reason}"
        raise InvalidRequest(f"{where} is not UTF-8 text ({problem})") from None


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """A progress bar on a terminal with tqdm installed; silence otherwise."""
    bar: Any = None
    if sys.stderr.isatty():
        with suppress(ImportError):
            from tqdm import tqdm

            bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024)
    try:
        yield (lambda count: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()


def require_lasting_gateway() -> None:
    """Refuse what a private gateway, which ends with this command, cannot do. Raises InvalidRequest."""
    if explicit_endpoint() is None:
        raise InvalidRequest(
            f"this needs a gateway that stays: give --url and --key, or set {URL_VARIABLE} and {KEY_VARIABLE}"
        )
