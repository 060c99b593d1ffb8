"""Many sandboxes of two tenants at once: nothing of one is ever seen in another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.security.support import Operator, Person, in_shape, until

COUNT = 12


@dataclass
class Box:
    """A sandbox, whose it is, and the mark that everything in it bears."""

    id: str
    kernel: str
    person: Person
    mark: str
    start: str


def shared_pools(person: Person) -> list[str]:
    """The names of the pools that warm sandboxes of the plain Python runtime come from."""
    pools = person.client.made("GET", "/api/v1/warmpools")["items"]
    return [pool["name"] for pool in pools if pool["runtime"] == "python" and not pool["preloadPackages"]]


@pytest.fixture(scope="module")
def boxes(operator: Operator) -> Iterator[list[Box]]:
    """Created at the same time by two tenants in turn: warm ones, cold ones, some over the Jupyter API."""
    people = [operator.person("overlap-a"), operator.person("overlap-b")]

    def create(number: int) -> Box:
        person, mark = people[number % 2], f"mark-{number}-of-{number % 2}"
        env = {"MARK": mark, f"ONLY_{number}": mark}
        if number % 6 == 5:
            kernel = person.client.made("POST", "/api/kernels", {"name": "python3", "env": env})
            box = person.client.made("GET", f"/api/v1/sandboxes/{kernel['sandbox']['id']}")
            path = f"/api/v1/sandboxes/{box['id']}/files/mark.txt"
            assert person.client.put(path, content=mark.encode()).is_success
        else:
            body = {"runtime": "python", "env": env, "files": {"mark.txt": mark}, "metadata": {"mark": mark}}
            box = person.client.made("POST", "/api/v1/sandboxes", body | {"useWarmPool": number % 4 != 3})
        return Box(box["id"], box["kernelId"], person, mark, box["start"]["kind"])

    if pools := shared_pools(people[0]):
        path = f"/api/v1/warmpools/{pools[0]}/status"
        until(lambda: people[0].client.made("GET", path)["availablePods"] > 0, "a sandbox is warm")
    with ThreadPoolExecutor(COUNT) as pool:
        made = list(pool.map(create, range(COUNT)))
    yield made
    for box in made:
        box.person.client.delete(f"/api/v1/sandboxes/{box.id}")


LOOK = """
import json, os, glob
print(json.dumps({
    "env": {name: value for name, value in os.environ.items() if "mark-" in value},
    "files": {path: open(path).read() for path in glob.glob("/workspace/**", recursive=True)
              if os.path.isfile(path)},
    "names": sorted(name for name in globals() if name.startswith("left_")),
}))
"""


def test_overlapping_creates_never_mix_env_or_files(boxes: list[Box]) -> None:
    """Each has its own env and files, whole, and nobody else's; warm and cold alike."""
    assert len({box.id for box in boxes}) == len({box.kernel for box in boxes}) == COUNT
    assert {box.start for box in boxes} == ({"warm", "cold"} if shared_pools(boxes[0].person) else {"cold"})

    def look(box: Box) -> dict[str, Any]:
        box.person.client.output(box.id, f"left_{boxes.index(box)} = 1")
        seen: dict[str, Any] = json.loads(box.person.client.output(box.id, LOOK))
        return seen

    with ThreadPoolExecutor(COUNT) as pool:
        for number, (box, seen) in enumerate(zip(boxes, pool.map(look, boxes), strict=True)):
            assert seen["env"] == {"MARK": box.mark, f"ONLY_{number}": box.mark}
            assert seen["files"] == {"/workspace/mark.txt": box.mark}
            assert seen["names"] == [f"left_{number}"]


def test_env_of_a_sandbox_reaches_its_commands_and_further_contexts_only(boxes: list[Box]) -> None:
    box = boxes[0]
    base = f"/api/v1/sandboxes/{box.id}"
    said = box.person.client.made("POST", f"{base}/commands", {"command": "echo $MARK $ONLY_1"})
    assert said["stdout"] == f"{box.mark}\n"
    context = box.person.client.made("POST", f"{base}/contexts", {})["id"]
    code = "import os; print(os.environ.get('MARK'), os.environ.get('ONLY_1'), 'left_0' in globals())"
    assert box.person.client.output(box.id, code, context=context) == f"{box.mark} None False\n"


def test_env_of_one_execution_is_gone_in_the_next(boxes: list[Box]) -> None:
    box = boxes[0]
    code = "import os; print(os.environ.get('ONCE'), os.environ['MARK'])"
    assert box.person.client.output(box.id, code, env={"ONCE": "x"}) == f"x {box.mark}\n"
    assert box.person.client.output(box.id, code) == f"None {box.mark}\n"


@pytest.mark.parametrize("path", ["/api/v1/sandboxes", "/api/kernels", "/api/sessions", "/api/v1/grants"])
def test_lists_hold_ones_own_only(path: str, boxes: list[Box]) -> None:
    for box in boxes:
        listed = box.person.client.get(path, params={"limit": 1000} if "v1" in path else {}).text
        for other in boxes:
            if other.person is not box.person:
                assert other.id not in listed
                assert other.kernel not in listed
                assert other.mark not in listed
            elif path in ("/api/v1/sandboxes", "/api/kernels"):
                assert other.kernel in listed


def test_counts_are_ones_own(boxes: list[Box]) -> None:
    for person in (boxes[0].person, boxes[1].person):
        assert person.client.made("GET", "/api/status")["kernels"] >= COUNT // 2
        usage = person.client.made("GET", "/api/v1/user")["usage"]
        assert usage["sandboxes"] == COUNT // 2


def test_a_warm_start_carries_nothing_over(boxes: list[Box], operator: Operator) -> None:
    """A sandbox made after another has ended finds no trace of it."""
    person = operator.person("overlap-c")
    body = {"runtime": "python", "files": {"left.txt": "left"}, "env": {"LEFT": "left"}}
    first = person.client.made("POST", "/api/v1/sandboxes", body)["id"]
    person.client.output(
        first, "left = 1; open('/tmp/left', 'w').write('left'); open('/home/sandbox/left', 'w')"
    )
    assert person.client.delete(f"/api/v1/sandboxes/{first}").status_code == 204
    second = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    code = (
        "import os\nprint([name for place in ('/tmp', '/workspace', '/home/sandbox', '/dev/shm', '/var/tmp') "
        "for name in os.listdir(place) if 'left' in name], 'left' in globals(), 'LEFT' in os.environ)"
    )
    try:
        assert person.client.output(second, code) == "[] False False\n"
        in_shape(person.client.get(f"/api/v1/sandboxes/{first}/files/left.txt"), 410, "gone")
    finally:
        person.client.delete(f"/api/v1/sandboxes/{second}")
