"""The generated files of docs/ are those that `make docs` writes now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "reference" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.FILES)
def test_it_is_current(name: str) -> None:
    """Otherwise: run `make docs`, look at what changed, and commit it."""
    assert (DOCS / name).read_text(encoding="utf-8") == generate.FILES[name]()
