"""A full disk under the data dir: ends keep their words, folders go, and refusals say why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from llmsafespace_gateway import failures
from llmsafespace_gateway.backends.local import records
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import sandboxes
from tests.integration import local_support as support
from tests.integration.sandboxes_support import ADA, House, wanted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")


@pytest.fixture
def small() -> Iterator[Path]:
    """A data dir of 4 MiB that others may pass through."""
    with tempfile.TemporaryDirectory(prefix="lsp-") as above:
        os.chmod(above, 0o711)
        folder = Path(above, "d")
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0711", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
async def house(small: Path) -> AsyncIterator[House]:
    yield House(small)
    await support.eventually(lambda: support.processes_of(small) == [])


def fill(folder: Path) -> Path:
    """Take all room, to the last byte."""
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(65536)):
            pass
    os.close(descriptor)
    with pytest.raises(OSError, match="No space"):
        (folder / "more").write_bytes(b"x")
    (folder / "more").unlink()
    return ballast


async def end_all(house: House, made: dict[str, str]) -> None:
    """Each sandbox in the way of its word."""
    backend = house.backend
    for word, status in (("expired", 10), ("oom", 11)):
        with contextlib.suppress(ConnectionError):
            await support.call(backend, made[word], "leave", status=status)
    keeper = records.keeper_of(support.entry_of(backend, made["lost"]).folder)
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    await house.sandboxes.delete(made["terminated"])
    await support.eventually(lambda: house.folders() == [])
    await support.eventually(lambda: len(house.ended) >= len(made))


WORDS = ("terminated", "expired", "oom", "lost")


async def test_ends_are_right_without_disk(house: House) -> None:
    async with house.open():
        made = {word: (await house.sandboxes.create(ADA, wanted())).id for word in WORDS}
        ballast = fill(house.folder)
        await end_all(house, made)
        for word, sandbox_id in made.items():
            row = await house.row(sandbox_id)
            assert (row.state, row.end) == ("ended", word)
        assert await sandboxes.running(house.store) == []
        fill(house.folder)  # the dead have left some room
        with pytest.raises((OSError, OperationalError, ApiError)) as caught:
            await house.sandboxes.create(ADA, wanted())
        answer = failures.explained(caught.value)
        assert answer is not None
        assert (answer.status, answer.code) == (507, "insufficient_storage")
        assert "disk" in answer.message
        assert house.folders() == []
        ballast.unlink()
        await support.eventually(lambda: not house.store.unwritten)
        assert (await house.sandboxes.create(ADA, wanted())).state == "running"
        await house.clear()
        assert not list((house.folder / "ended").iterdir())


async def test_ends_on_a_full_disk_survive_the_gateway(house: House) -> None:
    """What could not be written while the gateway lived is read from the room that was reserved for it."""
    async with house.open():
        made = {word: (await house.sandboxes.create(ADA, wanted())).id for word in WORDS}
        ballast = fill(house.folder)
        await end_all(house, made)
    ballast.unlink()
    async with house.open():
        for word, sandbox_id in made.items():
            assert (await house.row(sandbox_id)).end == word
