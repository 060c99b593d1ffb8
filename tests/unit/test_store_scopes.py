"""Every statement on rows that belong to somebody says whose in its WHERE.

All functions of the query modules are called; what they send to the database is looked at. A function that is
not limited to a tenant is named in UNSCOPED with the reason.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Column, Delete, Select, Update, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BinaryExpression

import llmsafespace_gateway
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import (
    Store,
    audit,
    grants,
    kernels,
    keys,
    pools,
    sandboxes,
    sessions,
    sqlite_url,
    users,
)
from llmsafespace_gateway.store import rows as row_types

MODULES = (audit, grants, kernels, keys, pools, sandboxes, sessions, users)
# The columns that say whose a row is. The id of a sandbox or a user is one where the row is found by another.
SCOPES = {
    "sandboxes": {"tenant", "owner"},
    "kernels": {"sandbox_id"},
    "sessions": {"tenant", "owner"},
    "grants": {"sandbox_id", "user_id"},
    "users": {"tenant"},
    "api_keys": {"user_id"},
    "warm_pools": {"tenant"},
    "audit": {"tenant"},
}
UNSCOPED = {
    "audit.forget_before": "old entries go, whoever's",
    "audit.newest": "a single time, of no row",
    "keys.known": "the key's secret is what is checked; a request's tenant comes from this row",
    "keys.everything": "the operator's command line, without a tenant",
    "keys.rights": "the ids are those of keys that are in use here: whether they still are what they were",
    "keys.revoked_since": "each process forgets every key that was revoked; ids only",
    "keys.used": "the ids are those of keys that were just authenticated",
    "kernels.insert": "as kernels.taken, where an id is refused",
    "kernels.note_activity": "the relay writes about the kernels that it serves, after authorizing each",
    "kernels.taken": "ids are unique over all tenants; tells that one is taken, and nothing of the row",
    "pools.visible": "without a tenant: for a gateway's start and for sums in the metrics",
    "sandboxes.get": "ids that the gateway or its backend names: how a sandbox ended",
    "sandboxes.end": "the backend tells that a sandbox has ended",
    "sandboxes.running": "a gateway's start counts everybody's sandboxes",
    "sandboxes.holdings": "a gateway's start counts what everybody's sandboxes take",
    "sandboxes.running_since": "compared with what the backend runs",
    "sandboxes.forget_ended": "old rows go, whoever's",
    "users.get": "without a tenant: the operator manages the users of all",
    "users.everyone": "without a tenant: the operator lists the users of all",
    "users.first_created": "a single time, of no row",
    "users.tenants": "not rows of a tenant but tenants",
}


ELSEWHERE = {
    "readiness.py": "whether the store can be written",
    "commands/check.py": "SELECT 1, to see whether the store answers",
}


def _functions() -> dict[str, Callable[..., Awaitable[Any]]]:
    return {
        f"{module.__name__.rsplit('.', 1)[1]}.{name}": function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


FUNCTIONS = _functions()


def _row(kind: type[Any]) -> Any:
    samples = {"str": "x", "int": 1, "float": 1.0, "bool": False}
    fields = {
        name: samples.get(str(annotation), ())
        for name, annotation in kind.__annotations__.items()
        if str(annotation) in samples or name in ("scopes",)
    }
    return kind(**fields)


def _argument(parameter: inspect.Parameter, bare: bool) -> Any:
    annotation = str(parameter.annotation)
    if annotation.endswith("| None") and bare:
        return None
    if annotation.endswith(("Row", "Row | None")):
        return _row(getattr(row_types, annotation.removesuffix(" | None")))
    if "tuple[str, float, str | None, int]" in annotation:
        return [("x", 1.0, None, 0)]
    if annotation.startswith("Sequence[AuditRow"):
        return [_row(row_types.AuditRow)]
    if annotation.startswith(("Sequence", "Collection")):
        return ["x"]
    if annotation.startswith(("Mapping", "dict")):
        return {"x": 1.0}
    return {"str": "x", "int": 1, "float": 1.0, "bool": True}[annotation.removesuffix(" | None")]


CHANGES: dict[str, dict[str, Any]] = {
    "kernels": {"path": "y"},
    "sandboxes": {"timeout": 1.0},
    "sessions": {"path": "y"},
}


def _arguments(name: str, bare: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for parameter in list(inspect.signature(FUNCTIONS[name]).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= CHANGES[name.split(".")[0]]
        elif parameter.default is parameter.empty or not bare:
            found[parameter.name] = _argument(parameter, bare)
    return found


def _compared(statement: Any) -> set[Column[Any]]:
    """The columns that the WHERE compares, those of subqueries included."""
    found: set[Column[Any]] = set()
    for criterion in statement._where_criteria:
        for element in visitors.iterate(criterion):
            if isinstance(element, BinaryExpression):
                found |= {side for side in (element.left, element.right) if isinstance(side, Column)}
    return found


def unscoped(statement: Any) -> set[str]:
    """The tables with rows of tenants that a statement reads or changes without saying whose."""
    if not isinstance(statement, Select | Update | Delete):
        return set()  # what is inserted says whose it is in itself
    if isinstance(statement, Select):
        tables = {table.name for table in statement.get_final_froms() for table in _tables(table)}
    else:
        tables = {table.name for table in _tables(statement.table)}
    limited = {
        column.table.name
        for column in _compared(statement)
        if column.name in SCOPES.get(column.table.name, ())
    }
    # A join with a table that is limited limits the other: their keys are one.
    return set() if limited & tables else tables & set(SCOPES)


def _tables(clause: Any) -> list[Any]:
    return [each for each in visitors.iterate(clause) if each.__visit_name__ == "table"]


@pytest.fixture
async def seen(tmp_path: Path) -> AsyncIterator[tuple[Store, list[Any]]]:
    store = await Store.open(sqlite_url(tmp_path))
    statements: list[Any] = []

    def look(connection: Any, statement: Any, *rest: Any) -> None:
        statements.append(statement)

    event.listen(store._database._engine, "before_execute", look)  # type: ignore[union-attr]
    yield store, statements
    await store.close()


async def _sent(seen: tuple[Store, list[Any]], name: str, bare: bool) -> Sequence[Any]:
    store, statements = seen
    with contextlib.suppress(ApiError, IntegrityError):  # there are no such rows: what counts was sent
        await FUNCTIONS[name](store, **_arguments(name, bare))
    return statements


@pytest.mark.parametrize("bare", [False, True], ids=["all arguments", "required arguments"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - UNSCOPED.keys()))
async def test_says_whose(seen: tuple[Store, list[Any]], name: str, bare: bool) -> None:
    statements = await _sent(seen, name, bare)
    assert statements
    for statement in statements:
        assert unscoped(statement) == set(), f"{name}: {statement}"


@pytest.mark.parametrize("name", sorted(UNSCOPED))
async def test_every_exception_is_one(seen: tuple[Store, list[Any]], name: str) -> None:
    """A function that is limited by now leaves the list."""
    statements = await _sent(seen, name, True)
    assert any(unscoped(statement) for statement in statements) or name == "users.tenants"


def test_the_check_can_fail() -> None:
    from sqlalchemy import delete, select, update

    from llmsafespace_gateway.store.schema import kernels as table
    from llmsafespace_gateway.store.schema import sandboxes as boxes

    assert unscoped(delete(table).where(table.c.id == "k")) == {"kernels"}
    assert unscoped(update(table).where(table.c.id == "k").values(path="")) == {"kernels"}
    assert unscoped(select(table)) == {"kernels"}
    assert unscoped(select(table).join_from(table, boxes).where(table.c.id == "k")) == {
        "kernels",
        "sandboxes",
    }
    assert unscoped(delete(table).where(table.c.id == "k", table.c.sandbox_id == "s")) == set()


def test_statements_are_made_in_the_store_only() -> None:
    """Elsewhere nothing of SQLAlchemy is imported but its exceptions."""
    root = Path(llmsafespace_gateway.__path__[0])
    found = []
    for path in root.rglob("*.py"):
        where = path.relative_to(root)
        if where.parts[0] == "store" or str(where) in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy"):
                found += [] if node.module == "sqlalchemy.exc" else [(path, node.module)]
            elif isinstance(node, ast.Import):
                found += [(path, each.name) for each in node.names if each.name.startswith("sqlalchemy")]
    assert found == []


def test_every_query_module_is_looked_at() -> None:
    helpers = {"backup", "engine", "migrate", "query", "rows", "schema", "sqlite", "__init__"}
    folder = Path(llmsafespace_gateway.__path__[0], "store")
    names = {path.stem for path in folder.glob("*.py")} - helpers
    assert names == {_short(module) for module in MODULES}


def _short(module: ModuleType) -> str:
    return module.__name__.rsplit(".", 1)[1]
