"""PostgreSQL for tests: a schema of one's own on the server that LLMSAFESPACE_TEST_POSTGRES names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, make_url, text

SERVER = os.environ.get("LLMSAFESPACE_TEST_POSTGRES", "")


@contextmanager
def schema() -> Iterator[str]:
    """The URL of an empty store, which is removed afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    url = make_url(SERVER).set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    try:
        yield url.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(
            hide_password=False
        )
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        engine.dispose()
