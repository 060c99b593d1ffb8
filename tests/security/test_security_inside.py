"""Inside a sandbox, through the real API: nothing of the host, nothing of the agent, nobody else."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.support import Operator, Person


@pytest.fixture(scope="module")
def person(operator: Operator) -> Person:
    """Whose code it is."""
    return operator.person("inside")


@pytest.fixture(scope="module")
def box(person: Person) -> Iterator[str]:
    """The sandbox that is looked at from inside."""
    body = {"runtime": "python", "env": {"MINE": "mine"}, "timeout": 60}
    made = person.client.made("POST", "/api/v1/sandboxes", body)["id"]
    yield made
    person.client.delete(f"/api/v1/sandboxes/{made}")


@pytest.fixture(scope="module")
def neighbour(person: Person) -> Iterator[str]:
    """Another sandbox of the same user."""
    made = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    yield made
    person.client.delete(f"/api/v1/sandboxes/{made}")


def folder_of(gateway: Any, sandbox_id: str) -> Path:
    """Where the gateway keeps a sandbox on the host."""
    for path in (gateway.data_dir / "sandboxes").glob("*/claim.json"):
        if json.loads(path.read_text())["sandbox_id"] == sandbox_id:
            return Path(path.parent)
    raise AssertionError(f"no folder of {sandbox_id}")


def seen(person: Person, box: str, code: str) -> Any:
    """What code in the sandbox prints as JSON."""
    return json.loads(person.client.output(box, f"import json, os, socket\n{code}"))


# -- the host ----------------------------------------------------------------------------------------------


def test_ordinary_modules_are_not_blocked(person: Person, box: str) -> None:
    """The boundary is around the process: no list of forbidden imports, and nothing gained by any of them."""
    code = "import os, socket, subprocess, ctypes, sys, multiprocessing; print(subprocess.getoutput('id -u'))"
    assert person.client.output(box, code) == "1000\n"


def test_no_file_of_the_host(person: Person, box: str, tmp_path: Path) -> None:
    marked = tmp_path / "marked"
    marked.write_text("host")
    paths = [
        *("/etc/shadow", "/etc/passwd-", "/etc/machine-id", "/etc/ssh", "/proc/1/root"),
        *(str(Path.home() / name) for name in (".ssh", ".bashrc", ".profile", ".bash_history", ".cache")),
        *("/var/run/docker.sock", "/run/docker.sock", "/var/log", "/boot", "/sys/kernel", "/proc/kcore"),
        *("/var/run/secrets/kubernetes.io/serviceaccount/token", "/proc/sys/kernel/core_pattern.x"),
        *(str(marked), str(Path(__file__))),
    ]
    assert readable(person, box, paths) == []


def test_no_file_of_the_gateway(gateway: Any, person: Person, box: str) -> None:
    folder = folder_of(gateway, box)
    paths = [gateway.data_dir, gateway.data_dir / "db.sqlite", folder, folder / "state.json"]
    assert readable(person, box, [str(path) for path in paths]) == []


def readable(person: Person, box: str, paths: list[str]) -> Any:
    """Those of `paths` that code in the sandbox can read."""
    code = f"""
def reads(path):
    try:
        return bool(os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1))
    except OSError:
        return False
print(json.dumps([path for path in {paths!r} if reads(path)]))
"""
    return seen(person, box, code)


def test_no_file_of_the_host_through_the_files_api(person: Person, box: str) -> None:
    """A link that code makes leads the files API nowhere that the code itself cannot go."""
    links = {"shadow": "/etc/shadow", "root": "/", "environ": "/proc/1/environ", "agent": "/run/llmsafespace"}
    make = "\n".join(f"os.symlink({to!r}, '/workspace/link-{name}')" for name, to in links.items())
    person.client.output(box, f"import os\n{make}\nos.mkfifo('/workspace/fifo')")
    base = f"/api/v1/sandboxes/{box}/files"
    for path in (*(f"link-{name}" for name in links), "link-root/etc/passwd", "fifo", "link-root/proc/1/mem"):
        for answer in (
            person.client.get(f"{base}/{path}"),
            person.client.put(f"{base}/{path}/x", content=b"x"),
            person.client.get(base, params={"path": f"{path}/x"}),
        ):
            assert 400 <= answer.status_code < 500, (path, answer.text)
    person.client.output(box, "[os.unlink(e.path) for e in os.scandir('/workspace')]")


def test_no_environment_of_the_host(person: Person, box: str) -> None:
    env = seen(person, box, "print(json.dumps(dict(os.environ)))")
    assert env.pop("MINE") == "mine"
    assert env["HOME"] == "/home/sandbox"
    assert set(env) <= {
        *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_CTYPE", "TERM", "TMPDIR", "PWD", "TZ"),
        *(
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "PIP_CONFIG_FILE",
        ),
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("CLICOLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PAGER", "GIT_PAGER", "MPLBACKEND"),
    }
    for name in ("PATH", "http_proxy", "PIP_CONFIG_FILE"):
        assert name not in os.environ or env[name] != os.environ[name], name
    assert seen(person, box, "print(json.dumps(socket.gethostname()))") != socket.gethostname()


def test_no_process_of_the_host_or_of_a_neighbour(person: Person, box: str, neighbour: str) -> None:
    person.client.output(neighbour, "import subprocess; p = subprocess.Popen(['sleep', '3141'])")
    code = """
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: found[pid] = open(f"/proc/{pid}/cmdline").read().replace("\\0", " ")
    except OSError: pass
print(json.dumps(found))
"""
    found = seen(person, box, code)
    assert len(found) < 30
    assert not [line for line in found.values() if "3141" in line or "llmsafespace_gateway" in line]
    elsewhere = {os.getpid(), os.getppid(), 3141} - {1}  # each sandbox has a process 1 of its own
    kill = f"""
gone = []
for pid in {sorted(elsewhere)}:
    try: os.kill(pid, 0); gone.append(pid)
    except OSError: pass
print(json.dumps(gone))
"""
    assert seen(person, box, kill) == []
    assert person.client.output(neighbour, "print(p.poll()); p.kill()") == "None\n"


# -- the agent ---------------------------------------------------------------------------------------------


def test_the_agents_memory_and_descriptors_cannot_be_read(person: Person, box: str) -> None:
    code = """
def opens(path):
    try:
        if path.endswith(("/fd", "/task/1/fd", "map_files", "fdinfo")):
            return [os.readlink(f"{path}/{name}") for name in os.listdir(path)] != []
        with open(path, "rb") as file:
            return len(file.read(1)) > 0
    except OSError:
        return False
names = ("environ", "mem", "maps", "smaps", "fd", "fdinfo", "map_files", "auxv", "stack",
         "syscall", "pagemap", "personality", "cwd/.", "root/.", "exe", "io",
         "task/1/mem", "task/1/environ", "task/1/fd")
print(json.dumps([name for name in names if opens(f"/proc/1/{name}")]))
"""
    assert seen(person, box, code) == []


def test_the_agents_token_is_nowhere(gateway: Any, person: Person, box: str) -> None:
    """Looked for by its hash, in every file, argument, variable and byte of memory that code can read."""
    token = json.loads((folder_of(gateway, box) / "state.json").read_text())["token"]
    code = f"""
import hashlib, re
wanted = {{"hex": ({token[:6].encode()!r}, 64, {hashlib.sha256(token.encode()).hexdigest()!r}),
          "raw": (bytes.fromhex({token[:6]!r}), 32, {hashlib.sha256(bytes.fromhex(token)).hexdigest()!r})}}
looked = {{"files": 0, "memory": 0}}
def holds(data):
    for start, size, digest in wanted.values():
        for match in re.finditer(re.escape(start), data):
            if hashlib.sha256(data[match.start():match.start() + size]).hexdigest() == digest:
                return True
    return False
found = []
for top in ("/run", "/tmp", "/etc", "/opt/llmsafespace", "/home", "/workspace", "/dev/shm", "/var"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path):
                    looked["files"] += 1
                    if holds(open(path, "rb").read()): found.append(path)
            except OSError:
                pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try:
            if holds(open(f"/proc/{{pid}}/{{name}}", "rb").read()): found.append(f"{{pid}}/{{name}}")
        except OSError:
            pass
    try:
        memory = open(f"/proc/{{pid}}/mem", "rb", buffering=0)
        for line in open(f"/proc/{{pid}}/maps"):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and end - start < 2**28:
                try:
                    memory.seek(start)
                    looked["memory"] += 1
                    if holds(memory.read(end - start)): found.append(f"{{pid}}: {{line}}")
                except (OSError, ValueError, OverflowError):
                    pass
    except OSError:
        pass
print(json.dumps([found, looked]))
"""
    found, looked = seen(person, box, code)
    assert found == []
    assert looked["files"] > 10
    assert looked["memory"] > 10  # its own, and the template's: neither was ever told


def test_the_agent_cannot_be_signalled_or_traced(person: Person, box: str) -> None:
    """Not by any signal that would end or stop it: afterwards it answers as before."""
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ptrace = [libc.ptrace(request, 1, 0, 0) for request in (16, 0x4206)]
buffer = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
local, remote = Vector(ctypes.addressof(buffer), 8), Vector(0x400000, 8)
read = libc.process_vm_readv(1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
print(json.dumps([*ptrace, read]))
"""
    assert seen(person, box, code) == [-1, -1, -1]
    assert person.client.output(box, "print('here')") == "here\n"
    status = person.client.made("GET", f"/api/v1/sandboxes/{box}/status")
    assert status["status"] == "running"


def test_the_agents_own_files_cannot_be_changed(person: Person, box: str) -> None:
    code = """
def writes(path):
    try:
        with open(path, "ab"): return True
    except OSError:
        pass
    try:
        os.rename(path, path + ".moved"); return True
    except OSError:
        return False
found = [path for top in ("/opt", "/run/llmsafespace/agent", "/run/llmsafespace/egress")
         for folder, _, names in os.walk(top)
         for path in [folder, *(os.path.join(folder, n) for n in names[:50])]
         if writes(path)]
print(json.dumps(found))
"""
    assert seen(person, box, code) == []


def test_the_agents_door_opens_for_the_token_only(person: Person, box: str) -> None:
    """Code may knock at its own agent's socket, and is sent away: it cannot speak for the gateway."""
    code = """
import glob, struct
def knock(path, data):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        try:
            s.connect(path)
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            said = b""
            while piece := s.recv(65536): said += piece
            return said.decode("latin-1")
        except OSError as error:
            return f"refused {error.errno}"
doors = glob.glob("/run/llmsafespace/**/agent.sock", recursive=True)
body = b'{"proof": "00", "nonce": "00", "open": {"kind": "rpc"}}'
print(json.dumps([knock(door, data) for door in doors
                  for data in (b"", b"\\0" * 64, b"{}\\n", struct.pack(">IB", len(body), 1) + body)]))
"""
    for answer in seen(person, box, code):
        assert '"result"' not in answer
        assert "contexts" not in answer
    assert person.client.output(box, "print('here')") == "here\n"


def test_every_process_is_held_alike(person: Person, box: str) -> None:
    """Agent, template, kernel and command: no capability, no way to get one, and the filter."""
    code = """
import subprocess
command = subprocess.Popen(["sleep", "60"])
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    fields = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    found[pid] = [int(fields[name], 16) for name in wanted]
command.kill()
print(json.dumps(found))
"""
    found = seen(person, box, code)
    assert "1" in found
    assert len(found) >= 4
    assert set(map(tuple, found.values())) == {(0, 0, 0, 0, 0, 1, 2)}


# -- the network -------------------------------------------------------------------------------------------


def test_nothing_of_the_network_is_reachable(gateway: Any, person: Person, box: str) -> None:
    """Not the gateway, not the host, no resolver, no metadata service, and no address by any family."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        ports = [gateway.port, listening.getsockname()[1], 22, 53, 80]
        own = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        hosts = ["127.0.0.1", "127.0.0.53", "169.254.169.254", "1.1.1.1", "10.0.0.1", "172.17.0.1", *own]
        code = f"""
def reaches(host, port, kind):
    try:
        with socket.socket(socket.AF_INET, kind) as s:
            s.settimeout(3)
            s.connect((host, port))
            if kind == socket.SOCK_DGRAM: s.send(b"x")
            return True
    except OSError:
        return False
print(json.dumps([[h, p, k] for h in {hosts!r} for p in {ports!r}
                  for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
                  if reaches(h, p, k) and not (h.startswith("127.") and k == socket.SOCK_DGRAM)]))
"""
        assert seen(person, box, code) == []


def test_no_resolver(person: Person, box: str) -> None:
    """Names are the egress proxy's affair: a resolver would be a way out."""
    code = """
found = []
for name in ("example.org", "pypi.org", "metadata.google.internal", "gateway", "host.docker.internal"):
    try: found.append(socket.getaddrinfo(name, 80))
    except OSError: pass
try: servers = [line for line in open("/etc/resolv.conf") if line.startswith("nameserver")]
except OSError: servers = []
print(json.dumps([found, servers]))
"""
    assert seen(person, box, code) == [[], []]


REFUSED = [
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/",
    "http://127.0.0.1:{port}/healthz",
    "http://localhost:{port}/healthz",
    "http://[::1]:{port}/healthz",
    "http://0.0.0.0:{port}/healthz",
    "http://2130706433:{port}/healthz",
    "http://0x7f.1:{port}/healthz",
    "http://[::ffff:127.0.0.1]:{port}/healthz",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "http://example.org/",
    "https://example.org/",
    "https://127.0.0.1:{port}/",
    "ftp://example.org/",
]


def test_the_proxy_lets_nothing_through_that_is_not_allowed(gateway: Any, person: Person, box: str) -> None:
    urls = [url.format(port=gateway.port) for url in REFUSED]
    code = f"""
import urllib.request, urllib.error
found = {{}}
for url in {urls!r}:
    try:
        found[url] = urllib.request.urlopen(url, timeout=15).status
    except urllib.error.HTTPError as error:
        found[url] = error.code
    except (OSError, ValueError) as error:
        found[url] = str(error)
print(json.dumps([found, urllib.request.getproxies()]))
"""
    found, proxies = seen(person, box, code)
    assert proxies.get("http")  # it is the proxy that refuses, not the lack of one
    for url, outcome in found.items():
        assert not isinstance(outcome, int) or outcome in (400, 403, 405, 501), (url, outcome)


def test_a_sandboxs_own_rules_do_not_open_private_addresses(gateway: Any, person: Person) -> None:
    """Whoever makes a sandbox may name a host; that it resolves to a private address is found out."""
    hosts = ("localhost", "127.0.0.1", "0.0.0.0", "localtest.me")
    rules = [{"domain": host, "ports": [gateway.port]} for host in hosts]
    body = {"runtime": "python", "networkAccess": {"egress": rules}}
    box = person.client.made("POST", "/api/v1/sandboxes", body)["id"]
    try:
        code = f"""
import urllib.request
for host in {hosts!r}:
    handler = urllib.request.ProxyHandler({{"http": urllib.request.getproxies()["http"]}})
    request = urllib.request.Request(f"http://{{host}}:{gateway.port}/healthz")
    try: print(urllib.request.build_opener(handler).open(request, timeout=15).status)
    except OSError as error: print(error)
"""
        assert "200" not in person.client.output(box, code)
    finally:
        person.client.delete(f"/api/v1/sandboxes/{box}")


def test_rules_that_name_no_host_are_refused(person: Person) -> None:
    for domain in ("*", "*.", "**", "0.0.0.0/0", "10.0.0.0/8", "http://x", "x:80", "a b", "a..b", "", "x\n"):
        body = {"runtime": "python", "networkAccess": {"egress": [{"domain": domain}]}}
        answer = person.client.post("/api/v1/sandboxes", json=body)
        if answer.is_success:
            person.client.delete(f"/api/v1/sandboxes/{answer.json()['id']}")
        assert answer.status_code == 400, (domain, answer.text)


def test_a_neighbours_socket_is_out_of_reach(gateway: Any, person: Person, box: str, neighbour: str) -> None:
    door = folder_of(gateway, neighbour) / "agent.sock"
    assert door.exists()
    code = f"""
import glob
found = []
for path in ({str(door)!r}, "\\0llmsafespace", *glob.glob("/run/llmsafespace/**", recursive=True)):
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(path)
            found.append(path)
    except OSError:
        pass
print(json.dumps(found))
"""
    reached = seen(person, box, code)
    assert str(door) not in reached
    assert all(path.startswith("/run/llmsafespace/") for path in reached)
