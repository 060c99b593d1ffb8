"""The gateway's records: tables, queries, migrations."""

from llmsafespace_gateway.store import audit, grants, kernels, keys, pools, sandboxes, sessions, users
from llmsafespace_gateway.store.engine import Store, sqlite_file, sqlite_url, stated_url

__all__ = [
    "Store",
    "audit",
    "grants",
    "kernels",
    "keys",
    "pools",
    "sandboxes",
    "sessions",
    "sqlite_file",
    "sqlite_url",
    "stated_url",
    "users",
]
