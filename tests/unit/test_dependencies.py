"""What the gateway's distribution declares is what its code imports, and an installation stays small."""

from __future__ import annotations

import ast
import configparser
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MOST = 55  # distributions of `pip install llmsafespace-gateway`, own ones included
NOT_IMPORTED = {"pip"}  # started as a program
EXTRAS = {"llmsafespace-kube"}  # imported where the backend is Kubernetes


def declared() -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]


def imported() -> set[str]:
    """Top-level modules that are imported anywhere in the gateway, also inside functions."""
    found: set[str] = set()
    for path in (ROOT / "llmsafespace_gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"llmsafespace_gateway"}


def asked_for() -> set[str]:
    """Distributions whose version the gateway asks for, as text: `version("name")`."""
    found: set[str] = set()
    for path in (ROOT / "llmsafespace_gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "version":
                found.update(str(each.value) for each in node.args if isinstance(each, ast.Constant))
    return found


def distributions(requirements: list[Requirement]) -> set[str]:
    """The names of these and all that they require here, by what is installed."""
    found: set[str] = set()
    done: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(each.name), extra) for each in requirements for extra in ("", *each.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        found.add(name)
        for line in distribution(name).requires or ():
            each = Requirement(line)
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(each.name), more) for more in ("", *each.extras)]
    return found


def test_what_is_declared_is_imported_and_the_reverse() -> None:
    of_module = packages_distributions()
    used = {canonicalize_name(of_module[module][0]) for module in imported() if module in of_module}
    names = {canonicalize_name(each.name) for each in declared()}
    assert names - used == NOT_IMPORTED
    assert used - names <= EXTRAS


def test_an_installation_is_small() -> None:
    found = distributions(declared()) | {"llmsafespace-gateway"}
    assert len(found) <= MOST, sorted(found)


def test_versions_are_asked_of_what_is_declared() -> None:
    """An installation has nothing else: a gateway without jupyter_server did not start."""
    own = {"llmsafespace-gateway"}
    assert own <= asked_for() <= own | {canonicalize_name(each.name) for each in declared()}
