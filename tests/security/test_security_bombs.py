"""Code that takes all it can get: it is limited or ended, honestly, and its neighbours keep working."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.security.support import DEADLINE, Operator, Person, in_shape, until

AGENTS_GRACE = 5.0  # seconds between an interrupt that is ignored and the kernel's death
ENDS = ("ok", "error", "aborted", "timeout", "interrupted", "oom", "kernel_died", "expired")


@pytest.fixture(scope="module")
def person(operator: Operator) -> Person:
    """Whose sandboxes they are."""
    return operator.person("bombs")


def create(person: Person, **wanted: Any) -> str:
    made = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python", **wanted})
    return str(made["id"])


@pytest.fixture(scope="module")
def neighbour(person: Person) -> Iterator[str]:
    """A sandbox that minds its own business."""
    box = create(person)
    person.client.output(box, "kept = 42")
    yield box
    person.client.delete(f"/api/v1/sandboxes/{box}")


@pytest.fixture
def box(person: Person) -> Iterator[str]:
    """The sandbox that misbehaves."""
    limits = {"memory": "384Mi", "cpu": "500m", "ephemeralStorage": "64Mi"}
    made = create(person, resources=limits, useWarmPool=False)  # a warm one has all of its pool's
    yield made
    person.client.delete(f"/api/v1/sandboxes/{made}")


def meanwhile(person: Person, box: str, neighbour: str, code: str, **more: Any) -> dict[str, Any]:
    """Run `code` in `box`; while it runs, and afterwards, the neighbour answers. Its execution's answer."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(person.client.run, box, code, **more)
        while True:
            assert person.client.output(neighbour, "print(kept)") == "42\n"
            if running.done():
                break
    assert person.client.output(neighbour, "print(kept)") == "42\n"
    return running.result()


def ends_honestly(person: Person, box: str, answer: dict[str, Any], *ends: str) -> None:
    """The execution's end is one of `ends` and is explained; the sandbox answers, or says how it ended."""
    assert answer["end"] in ends, answer
    assert answer["end"] in ENDS
    if answer["end"] != "ok" and answer["type"] == "code":
        assert answer["message"] or answer["error"]["value"], answer
    answers_or_says_why(person, box)


def answers_or_says_why(person: Person, box: str) -> None:
    base = f"/api/v1/sandboxes/{box}"

    def settled() -> bool:
        status = person.client.made("GET", f"{base}/status")
        if status["status"] == "ended":
            assert status["end"] in ("oom", "kernel_died", "lost", "terminated", "timeout"), status
            return True
        (context,) = status["contexts"]
        if context["state"] == "dead":
            assert context["end"], status
            person.client.made("POST", f"{base}/contexts/{context['id']}/restart")
        answer = person.client.post(f"{base}/execute", json={"content": "print(6 * 7)"}, timeout=DEADLINE)
        return answer.status_code == 200 and answer.json()["stdout"] == "42\n"

    until(settled, "the sandbox answers again, or says how it ended")


FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"


def test_a_fork_bomb_is_ended_by_its_owner_and_nobody_else_notices(
    gateway: Any, person: Person, box: str, neighbour: str
) -> None:
    base = f"/api/v1/sandboxes/{box}"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            lambda: person.client.post(
                f"{base}/execute", json={"content": FORK_BOMB, "timeout": 600}, timeout=2 * DEADLINE
            )
        )
        for _ in range(20):
            assert person.client.output(neighbour, "print(kept)") == "42\n"
        assert person.client.delete(base, timeout=DEADLINE).status_code == 204
        answer = running.result()
    if answer.status_code == 200:
        assert answer.json()["end"] in ENDS
    else:
        in_shape(answer)
        assert answer.status_code in (404, 410)
    assert person.client.made("GET", base)["end"] == "terminated"
    assert person.client.output(neighbour, "print(kept)") == "42\n"


def test_a_fork_bomb_ends_at_its_timeout(person: Person, box: str, neighbour: str) -> None:
    """It uses up the processor time that its agent shares: then the sandbox is ended from outside."""
    began = time.monotonic()
    answer = meanwhile(person, box, neighbour, FORK_BOMB, timeout=3)
    assert time.monotonic() - began < 3 + AGENTS_GRACE + 10
    ends_honestly(person, box, answer, "timeout")


def test_as_many_processes_as_there_may_be(person: Person, box: str, neighbour: str) -> None:
    """A command that finds no room is told so, and runs when there is some."""
    code = """
import subprocess, time
held = []
try:
    while True: held.append(subprocess.Popen(["sleep", "1000"]))
except OSError as error:
    print("refused", error.errno)
"""
    assert meanwhile(person, box, neighbour, code, timeout=60)["stdout"] == "refused 11\n"
    asked = {"content": "true", "type": "command"}
    answer = person.client.post(f"/api/v1/sandboxes/{box}/execute", json=asked, timeout=DEADLINE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded"), answer.text
    assert "processes" in answer.json()["error"]["message"]
    person.client.output(box, "for each in held: each.kill()\nfor each in held: each.wait()")
    assert person.client.run(box, "true", type="command")["end"] == "ok"


# Every thread of the agent is attacked, as far as it can be, and a hundred processes take its processor time.
ATTACK = """
import ctypes, os, resource
libc = ctypes.CDLL(None)
for thread in map(int, os.listdir("/proc/1/task")):
    for act in (
        lambda: os.sched_setaffinity(thread, [min(os.sched_getaffinity(0))]),
        lambda: os.setpriority(os.PRIO_PROCESS, thread, 19),
        lambda: os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0)),
        *(lambda limit=limit: resource.prlimit(thread, limit, (8, 8)) for limit in range(16)),
    ):
        try: act()
        except (OSError, ValueError): pass
for _ in range(100):
    if os.fork() == 0:
        while True: pass
while True: pass
"""


def test_an_attack_on_the_agent_does_not_escape_the_timeout(person: Person, box: str, neighbour: str) -> None:
    began = time.monotonic()
    answer = meanwhile(person, box, neighbour, ATTACK, timeout=3)
    assert time.monotonic() - began < 3 + AGENTS_GRACE + 10
    ends_honestly(person, box, answer, "timeout")


def test_an_attack_on_the_agent_does_not_escape_the_lifetime(person: Person) -> None:
    box = create(person, maxLifetime=6, useWarmPool=False)
    base = f"/api/v1/sandboxes/{box}"
    with ThreadPoolExecutor(1) as pool:
        asked = {"content": ATTACK, "timeout": 600}
        running = pool.submit(lambda: person.client.post(f"{base}/execute", json=asked, timeout=DEADLINE))
        until(lambda: person.client.made("GET", base)["status"] == "ended", "its life is over")
        assert person.client.made("GET", base)["end"] == "expired"
        assert running.result().json()["end"] == "expired"


def test_a_fork_bomb_of_the_shell(person: Person, box: str, neighbour: str) -> None:
    code = "bomb() { bomb | bomb & }; bomb; sleep 60"
    answer = meanwhile(person, box, neighbour, code, type="command", timeout=3)
    ends_honestly(person, box, answer, "timeout", "oom", "error", "ok")


def test_a_memory_bomb(person: Person, box: str, neighbour: str) -> None:
    code = "held = []\nwhile True: held.append(bytearray(2**24))"
    answer = meanwhile(person, box, neighbour, code, timeout=40)
    assert answer["end"] == "oom", answer
    assert "memory" in answer["error"]["value"].lower(), answer
    ends_honestly(person, box, answer, "oom")


def test_a_memory_bomb_of_many_processes(person: Person, box: str, neighbour: str) -> None:
    code = (
        "import subprocess, sys\n"
        "hold = 'held = bytearray(2**26)\\nimport time; time.sleep(30)'\n"
        "each = [subprocess.Popen([sys.executable, '-c', hold]) for _ in range(12)]\n"
        "print([process.wait() for process in each])"
    )
    answer = meanwhile(person, box, neighbour, code, timeout=6)
    ends_honestly(person, box, answer, "oom", "timeout", "ok", "kernel_died")


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/home/sandbox", "/dev/shm"])
def test_a_disk_filled(folder: str, person: Person, box: str, neighbour: str) -> None:
    """It is refused to the code that fills it, at a limit; nobody else notices, and it can be cleared."""
    code = f"""
import errno, os
written = 0
try:
    with open("{folder}/fill", "wb", buffering=0) as file:
        while written < 4096: written += file.write(bytes(2**20)) // 2**20
except OSError as error:
    print("refused", written, errno.errorcode[error.errno])
os.unlink("{folder}/fill")
"""
    answer = meanwhile(person, box, neighbour, code, timeout=40)
    if answer["end"] == "ok":
        word, written, error = answer["stdout"].split()
        assert (word, error) in (("refused", "ENOSPC"), ("refused", "EFBIG"), ("refused", "EDQUOT"))
        assert int(written) <= 192, folder
    ends_honestly(person, box, answer, "ok", "oom")


def test_a_full_workspace_is_told_to_the_files_api(person: Person, box: str, neighbour: str) -> None:
    path = f"/api/v1/sandboxes/{box}/files/big"
    answer = person.client.put(path, content=bytes(96 * 2**20), timeout=DEADLINE)
    assert 400 <= answer.status_code < 500 or answer.status_code == 507, answer.text
    assert answer.json()["error"]["message"]
    assert person.client.get(path).status_code == 404
    assert person.client.output(neighbour, "print(kept)") == "42\n"
    answers_or_says_why(person, box)


def test_many_descriptors_threads_and_files(person: Person, box: str, neighbour: str) -> None:
    code = """
import threading
held = []
try:
    while True: held.append(open("/dev/null"))
except OSError as error:
    held, number = [], error.errno
print("descriptors", number)
stop = threading.Event()
try:
    for _ in range(20000): threading.Thread(target=stop.wait, daemon=True).start()
except RuntimeError:
    print("threads")
stop.set()
"""
    answer = meanwhile(person, box, neighbour, code, timeout=40)
    assert answer["stdout"] == "descriptors 24\nthreads\n", answer
    answers_or_says_why(person, box)


def test_endless_output(person: Person, box: str, neighbour: str) -> None:
    answer = meanwhile(person, box, neighbour, "while True: print('x' * 10000)", timeout=2)
    assert answer["end"] in ("timeout", "oom"), answer  # what waits for a reader is the sandbox's memory
    *whole, _cut = answer["stdout"].split("\n")
    assert answer["truncated"] or answer["missed"] or {len(line) for line in whole} == {10_000}
    answers_or_says_why(person, box)


def test_code_that_will_not_be_interrupted(person: Person, box: str, neighbour: str) -> None:
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    answer = meanwhile(person, box, neighbour, code, timeout=1)
    ends_honestly(person, box, answer, "timeout")
