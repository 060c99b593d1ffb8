"""Writes syscalls.py: the numbers of the system calls that policy.py names, on x86_64 and aarch64.

    go mod download -json golang.org/x/sys@latest    # prints DIR, the folder of the module
    python -m llmsafespace_gateway.backends.local.isolation.numbering DIR

That module takes the numbers from the Linux kernel's own headers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmsafespace_gateway.backends.local.isolation import policy

TABLES = ("unix/zsysnum_linux_amd64.go", "unix/zsysnum_linux_arm64.go")
_NUMBER = re.compile(r"^\s*SYS_(\w+)\s+=\s+(\d+)", re.MULTILINE)
_HEAD = '''"""Numbers of the system calls in policy.py on x86_64 and aarch64. Written by numbering.py."""

from __future__ import annotations

NEWEST = {newest}

ALLOWED: dict[str, tuple[int | None, int | None]] = {allowed}

CHECKED: dict[str, tuple[int, int]] = {checked}

UNCHARGED: dict[str, tuple[int, int]] = {uncharged}
'''

Table = Mapping[str, int]


def read(text: str) -> dict[str, int]:
    """The numbers in one of TABLES, by name in small letters."""
    return {name.lower(): int(number) for name, number in _NUMBER.findall(text)}


def render(tables: Sequence[Table]) -> str:
    """The text of syscalls.py. Raises ValueError for a name that no table has."""

    def block(names: Sequence[str]) -> str:
        lines = []
        for name in sorted(names):
            pair = tuple(table.get(name) for table in tables)
            if pair == (None, None):
                raise ValueError(f"no system call is named {name!r}")
            lines.append(f'    "{name}": {pair},\n')
        return "{\n" + "".join(lines) + "}"

    return _HEAD.format(
        newest=tables[0][policy.NEWEST],
        allowed=block(policy.ALLOWED),
        checked=block(policy.CHECKED),
        uncharged=block(policy.UNCHARGED),
    )


def main(arguments: Sequence[str]) -> None:
    """Write syscalls.py beside this file from the tables in the folder of golang.org/x/sys."""
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    tables = [read(Path(arguments[0], name).read_text(encoding="utf-8")) for name in TABLES]
    Path(__file__).with_name("syscalls.py").write_text(render(tables), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
