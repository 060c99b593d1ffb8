"""Fault tests: what a gateway and its sandboxes promise while something around them breaks.

What belongs here: the gateway is killed, stopped, restarted or stalled; the database is locked, full, lost
or corrupt; the disk is full; a connection is cut, half open or slow; a peer is gone; too many come at once.
Each test says in its docstring which promise must survive.

How to write one. Ask for the weakest fixture that does:

* `gateway`: any gateway, shared by all tests; use only its `url` and `admin_key` (and `operator.person()` of
  this folder for a tenant of the test's own). Such a test runs against every backend and every installation:
  `pytest tests/faults --gateway URL --key KEY`.
* `deployment`: a gateway that this module's tests may `kill()`, `stop()` and `start()`. It serves when a test
  begins, whatever the test before did. Sandboxes, keys and data survive its death. With `--gateway URL`
  alone such tests are skipped with the reason; a backend that can restart its gateway brings
  `--deployment module:function`.
* `own_gateway` (tests/conftest.py): a fresh local gateway for one test, whose data folder the test may ruin.
* `make_gateway` (tests/conftest.py): the same with other settings.

Assert behaviour, not timing, and fake the clock rather than sleep. Long forms are marked `heavy`.
tests/deployments.py describes what a deployment is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import deployments
from tests.conftest import make_gateway
from tests.security.support import Operator


@pytest.fixture(scope="module")
def _deployment(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One deployment for a module's tests."""
    if deployments.chosen(request.config) is not None:
        yield request.getfixturevalue("gateway")
        return
    folder = Path(tempfile.mkdtemp(dir=request.getfixturevalue("data_root")))
    made = make_gateway(folder)
    yield made
    made.end_all()


@pytest.fixture
def deployment(_deployment: Any) -> Iterator[Any]:
    """A gateway that may be killed, stopped and started; it serves at the beginning of each test."""
    yield _deployment
    if not _deployment.serves():
        _deployment.start()


@pytest.fixture
def operator(deployment: Any) -> Iterator[Operator]:
    """Makes users and keys of the deployment."""
    made = Operator(deployment.url, deployment.admin_key)
    yield made
    made.close()
