"""The door that the contributors' documentation adds is authorized, limited and audited as others are."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Gateway

FOLDER = Path(__file__).parents[2] / "docs" / "contributing"
MAIN = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import plain_door
from llmsafespace_gateway import wiring
wiring.DOORS += (plain_door,)
from llmsafespace_gateway.app import main
main(sys.argv[4:])
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder:
        Path(folder).chmod(0o755)
        made = Gateway(Path(folder), warm_pools=[])
        made.prefix = (sys.executable, "-c", MAIN)
        made.start()
        yield made
        made.end_all()


def client(gateway: Gateway, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)


def test_the_documented_door(served: Gateway) -> None:
    ada, eve = (client(served, served.key(name, "developer", name)) for name in ("ada", "eve"))
    sandbox = ada.post("/api/v1/sandboxes", json={"runtime": "python"}).raise_for_status().json()["id"]
    done = ada.post(f"/plain/{sandbox}", content="print(6 * 7)")
    assert (done.status_code, done.text, done.headers["X-End"]) == (200, "42\n", "ok")
    assert eve.post(f"/plain/{sandbox}", content="print(1)").status_code == 404
    assert httpx.post(f"{served.url}/plain/{sandbox}", content="1", timeout=60).status_code == 401
    admin = client(served, served.key("root", "admin", "ada"))
    rows = admin.get("/api/v1/audit?limit=100").raise_for_status().json()["items"]
    (row,) = [each for each in rows if each["action"] == "sandbox.execute"]
    assert (row["target"], row["outcome"], row["details"]["door"]) == (sandbox, "ok", "plain")
    metrics = httpx.get(f"{served.url}/metrics", timeout=60).text
    assert 'door="plain"' in metrics


def test_the_documented_door_is_small() -> None:
    assert len((FOLDER / "plain_door.py").read_text().splitlines()) < 60
