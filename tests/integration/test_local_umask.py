"""Sandboxes start and work whatever the umask is: modes are set wherever another uid must read.

Also run as an ordinary user (see test_local_user).
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsafespace_gateway.backends.base import EgressRule
from tests.conftest import make_gateway
from tests.integration import local_support as support
from tests.security.support import Client

UMASKS = (0o077, 0o027, 0o000, 0o777)


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask for the length of a test."""
    if request.param == 0o777 and os.geteuid() != 0:
        pytest.skip("nobody but root can use what this umask makes; a gateway sets its own")
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def test_a_sandbox_starts_warm_and_cold_and_reads_what_it_needs(umask: int) -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        await support.available(backend, "warm", 1)
        kinds = [
            (await backend.claim(support.spec(f"sb-{n}", use_warm_pool=n == 0))).start.kind for n in range(2)
        ]
        assert kinds == ["warm", "cold"]
        for box in ("sb-0", "sb-1"):
            code = (
                "import os; print(open('/etc/passwd').read().count(':x:'), os.listdir('/run/llmsafespace'))"
            )
            assert (await support.run(backend, box, code)).startswith("3 [")
            if backend._host.hierarchy.memory:
                code = "import os; print(len(os.listdir('/run/llmsafespace/cgroup')) > 5)"
                assert await support.run(backend, box, code) == "True"


async def test_nobody_else_reads_what_the_gateway_keeps(umask: int) -> None:
    """A wide umask opens nothing: tokens and claims are their user's alone."""
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a", egress=(EgressRule(domain="example.org"),)))
        (folder,) = (backend._data_dir / "sandboxes").iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "egress").stat().st_mode) == 0o711
        for name in ("state.json", "claim.json", "lock", "agent.sock"):
            assert (folder / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.skipif(os.geteuid() != 0, reason="the gateway of the tests is root's")
def test_a_whole_gateway_started_under_an_odd_umask_serves(data_root: Path) -> None:
    """The gateway settles its own umask first; sandboxes of other uids work, and its files are its own."""
    folder = Path(tempfile.mkdtemp(dir=data_root))
    before = os.umask(0o777)
    try:
        gateway = make_gateway(folder)
    finally:
        os.umask(before)
    try:
        client = Client(gateway.url, gateway.admin_key)
        box = client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
        assert client.output(box, "import numpy; print(numpy.arange(3).sum())") == "3\n"
        assert stat.S_IMODE((folder / "db.sqlite").stat().st_mode) == 0o600
        client.close()
    finally:
        gateway.end_all()
