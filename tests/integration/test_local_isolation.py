"""What code inside a sandbox can see and do. Also run as an ordinary user (see test_local_user)."""

import json
import os
import socket
from pathlib import Path

import pytest

from llmsafespace_gateway.errors import ApiError
from tests.integration import local_support as support

MIB = support.MIB


async def test_no_host_files_environment_or_processes() -> None:
    async with support.fresh() as backend:
        os.environ["LOCAL_TEST_SECRET"] = "hidden"
        await backend.claim(support.spec("sb-a"))
        seen = json.loads(
            await support.run(
                backend,
                "sb-a",
                f"PROJECT = {str(Path(__file__).parents[2])!r}"
                """
import json, os, socket
def listing(path):
    try: return sorted(os.listdir(path))
    except OSError: return None
print(json.dumps({
    "root": listing("/"), "home": listing("/home"), "project": listing(PROJECT), "var": listing("/var"),
    "srv": listing("/srv"), "opt": listing("/opt"), "etc": listing("/etc"), "local": listing("/usr/local"),
    "dev": listing("/dev"), "env": dict(os.environ), "uid": os.getuid(), "host": socket.gethostname(),
    "pids": [int(p) for p in os.listdir("/proc") if p.isdigit()], "cwd": os.getcwd(),
    "shadow": os.path.exists("/etc/shadow"), "ssh": os.path.exists("/root/.ssh"),
    "commands": [open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc") if p.isdigit()],
}))
""",
            )
        )
    assert set(seen["root"]) <= {
        *("bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc", "root", "run"),
        *("sbin", "tmp", "usr", "var", "workspace", *Path(support.PREFIX).parts[1:2]),
    }
    assert seen["home"] == ["sandbox"]
    assert seen["project"] is None
    assert seen["var"] == ["tmp"]
    assert seen["srv"] is None
    assert seen["opt"] == ["llmsafespace", "probe.py", "python"]
    assert not {"shadow", "sudoers", "ssh", "machine-id", "hostid"} & set(seen["etc"])
    assert not seen["shadow"]
    assert not seen["ssh"]
    assert set(seen["dev"]) <= {
        *("core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"),
        *("tty", "urandom", "zero", "console"),
    }
    assert set(seen["env"]) <= {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE"}
    assert (seen["uid"], seen["host"], seen["cwd"]) == (1000, "sandbox", "/workspace")
    assert all("/opt/python" in command or not command for command in seen["commands"])
    assert max(seen["pids"]) < 100


async def test_root_is_read_only_and_places_to_write_are_not() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        outcome = await support.run(
            backend,
            "sb-a",
            """
def writes(path):
    try: open(path + "/file", "w").write("x"); return True
    except OSError: return False
print([p for p in ("/", "/etc", "/usr/bin", "/opt/python", "/opt/llmsafespace/agent", "/dev", "/var", "/home",
       "/run/llmsafespace/cgroup", "/run/llmsafespace/egress", "/proc", "/proc/sys/kernel") if writes(p)])
print([p for p in ("/tmp", "/var/tmp", "/workspace", "/home/sandbox", "/dev/shm", "/run/llmsafespace")
       if not writes(p)])
""",
        )
    assert outcome.splitlines() == ["[]", "[]"]


async def test_no_network_but_its_own_loopback() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        outcome = json.loads(
            await support.run(
                backend,
                "sb-a",
                f"""
import json, socket
def reaches(family, address, kind=socket.SOCK_STREAM):
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(2)
            s.connect(address)
            return "reached"
    except OSError as error:
        return error.errno or "timeout"
def makes(*arguments):
    try:
        socket.socket(*arguments).close()
        return "made"
    except OSError as error:
        return error.errno
own = socket.create_server(("127.0.0.1", 0))
print(json.dumps({{
    "host": reaches(socket.AF_INET, ("127.0.0.1", {port})),
    "metadata": reaches(socket.AF_INET, ("169.254.169.254", 80)),
    "internet": reaches(socket.AF_INET, ("1.1.1.1", 443)),
    "dns": reaches(socket.AF_INET, ("8.8.8.8", 53), socket.SOCK_DGRAM),
    "v6": reaches(socket.AF_INET6, ("2606:4700:4700::1111", 443)),
    "own": reaches(socket.AF_INET, own.getsockname()),
    "abstract": reaches(socket.AF_UNIX, "\\0llmsafespace-test"),
    "netlink": makes(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "packet": makes(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": makes(40, socket.SOCK_STREAM, 0),
    "alg": makes(38, socket.SOCK_SEQPACKET, 0),
    "raw": makes(socket.AF_INET, socket.SOCK_RAW, 1),
    "unix": makes(socket.AF_UNIX, socket.SOCK_STREAM),
}}))
""",
            )
        )
    listening.close()
    assert outcome.pop("own") == "reached"
    assert outcome.pop("unix") == "made"
    assert not {"reached", "made", "timeout"} & set(outcome.values()), outcome
    assert {outcome[name] for name in ("netlink", "packet", "vsock", "alg", "raw")} == {1}


SYSTEM_CALLS = {  # name: (x86_64, aarch64)
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "pidfd_getfd": (438, 438),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "syslog": (103, 116),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "settimeofday": (170, 170),
    "sethostname": (170, 161),
    "quotactl": (179, 60),
    "acct": (163, 89),
}


async def test_refused_system_calls() -> None:
    column = 0 if os.uname().machine == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in SYSTEM_CALLS.items() if name != "settimeofday"}
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        outcome = json.loads(
            await support.run(
                backend,
                "sb-a",
                f"""
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return ctypes.get_errno() if value == -1 else 0
numbers = {numbers!r}
found = {{name: call(number, 0, 0, 0, 0, 0) for name, number in numbers.items()}}
clone = {56 if column == 0 else 220}
for flag, name in ((0x10000000, "user"), (0x20000, "mount"), (0x20000000, "pid"), (0x40000000, "net")):
    found["clone " + name] = call(clone, flag | 17, 0, 0, 0, 0)
clone3 = call(435, 0, 0)
unknown = call(500)
with open("/dev/null") as f:
    import fcntl
    def ioctl(number):
        try: fcntl.ioctl(f, number, b" " * 64); return 0
        except OSError as error: return error.errno
    found["TIOCSTI"], found["SIOCGIFCONF"] = ioctl(0x5412), ioctl(0x8912)
print(json.dumps([found, clone3, unknown]))
""",
            )
        )
    refused, clone3, unknown = outcome
    assert set(refused.values()) == {1}, {name: errno for name, errno in refused.items() if errno != 1}
    assert (clone3, unknown) == (38, 38)


async def test_foreign_architecture_is_killed() -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x32 exists on x86_64 only")
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        code = "import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))"
        assert (await support.call(backend, "sb-a", "run", code=code))["status"] == -31


async def test_no_privileges_and_setuid_is_useless() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        status = await support.run(backend, "sb-a", "print(open('/proc/self/status').read())")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert {fields[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
            "0" * 16
        }
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        outcome = await support.run(
            backend,
            "sb-a",
            """
import os, subprocess
def fails(action):
    try: action(); return False
    except OSError: return True
print(fails(lambda: os.setuid(0)), fails(lambda: os.chown("/workspace", 0, 0)),
      fails(lambda: os.setgroups([0])), fails(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))))
os.system("cp /usr/bin/id /tmp/id; chmod 6755 /tmp/id")
print(subprocess.run(["/tmp/id", "-u"], capture_output=True, text=True).stdout.strip())
print(all(os.stat(m.split()[4]) and "nosuid" in m.split()[5] for m in open("/proc/self/mountinfo")
          if m.split()[4] in ("/", "/tmp", "/workspace", "/home/sandbox", "/usr/bin", "/opt/python")))
""",
        )
        assert outcome.splitlines() == ["True True True True", "1000", "True"]


async def test_uids_of_their_own_on_the_host() -> None:
    async with support.fresh() as backend:
        first = await backend.claim(support.spec("sb-a"))
        second = await backend.claim(support.spec("sb-b"))
        if os.geteuid() == 0:
            assert first.isolation["ownUid"]
            assert first.isolation["uid"] != second.isolation["uid"]
            assert first.isolation["uid"] >= 1_900_000_000
        else:
            assert first.isolation["uid"] == os.getuid()
        assert first.isolation["backend"] == "bubblewrap"
        assert first.isolation["network"] == "none"


async def test_fork_bomb_is_bounded_and_the_neighbour_works() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        await backend.claim(support.spec("sb-b"))
        count = await support.run(
            backend,
            "sb-a",
            """
import os, signal
pids = []
try:
    for _ in range(3000):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
except OSError as error:
    print(len(pids), error.errno)
for pid in pids:
    os.kill(pid, 9)
""",
        )
        made, errno = map(int, count.split())
        assert 100 < made < 512
        assert errno == 11
        assert await support.run(backend, "sb-b", "print('works')") == "works"


async def test_memory_bomb_ends_alone() -> None:
    async with support.fresh() as backend:
        if not backend._host.hierarchy.memory:
            pytest.skip("no memory cgroup here: the agent's watchdog does this, and has its own tests")
        await backend.claim(support.spec("sb-a"))
        await backend.claim(support.spec("sb-b"))
        code = "open('/proc/self/oom_score_adj', 'w').write('1000'); bytearray(2**30)"
        assert (await support.call(backend, "sb-a", "run", code=code))["status"] == -9
        for sandbox_id in ("sb-a", "sb-b"):
            assert await support.run(backend, sandbox_id, "print('works')") == "works"
        kills = "print([l for l in open('/run/llmsafespace/cgroup/memory.oom_control') if 'oom_kill ' in l])"
        if backend._host.hierarchy.version == 1:
            assert "oom_kill 0" not in await support.run(backend, "sb-a", kills)


async def test_one_process_cannot_take_all_memory_without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsafespace_gateway.backends.local import limits

    monkeypatch.setattr(limits, "discover", lambda parent: limits.NONE)
    async with support.fresh() as backend:
        claim = await backend.claim(support.spec("sb-a"))
        assert claim.isolation["limits"]["memory"]["by"] == "seccomp, rlimit and watchdog"
        assert claim.isolation["limits"]["cpu"] is None
        code = "import mmap\ntry: mmap.mmap(-1, 2**30, flags=2)\nexcept OSError as e: print(e.errno)"
        assert await support.run(backend, "sb-a", code) == "12"
        count = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC))"
        assert await support.run(backend, "sb-a", count) == "(512, 512)"


async def test_no_thread_hides_descriptors_without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in pipes is counted by the descriptors of a process, so each of its threads has the same."""
    from llmsafespace_gateway.backends.local import limits

    monkeypatch.setattr(limits, "discover", lambda parent: limits.NONE)
    clone = 56 if os.uname().machine == "x86_64" else 220
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        code = f"""
import ctypes, os, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return ctypes.get_errno()
print([call(436, 3000, 3001, flags) for flags in (0, 4, 2, 6)])
print(call({clone}, 0x100 | 0x800 | 0x10000, 0, 0, 0, 0), flush=True)
outcome = []
thread = threading.Thread(target=lambda: outcome.append(subprocess.run(["true"], close_fds=True).returncode))
thread.start(); thread.join()
print(outcome, os.waitpid(os.posix_spawn("/bin/true", ["true"], {{}}), 0)[1])
"""
        assert await support.run(backend, "sb-a", code) == "[0, 0, 22, 22]\n1\n[0] 0"


async def test_disk_fill_is_bounded_and_the_neighbour_works() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        await backend.claim(support.spec("sb-b"))
        outcome = await support.run(
            backend,
            "sb-a",
            """
import os
piece, written = bytes(2**20), 0
try:
    with open("/workspace/big", "wb", buffering=0) as f:
        while written < 200: f.write(piece); written += 1
except OSError as error:
    print(written, error.errno)
os.unlink("/workspace/big")
open("/workspace/small", "w").write("x")
""",
        )
        written, errno = map(int, outcome.split())
        assert 16 < written <= 64
        assert errno in (27, 28)
        assert (
            await support.run(backend, "sb-b", "open('/workspace/x', 'wb').write(bytes(2**20)); print(1)")
            == "1"
        )


async def test_descriptors_and_secrets_are_not_inherited() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        links = await support.run(
            backend,
            "sb-a",
            """
import os
print([os.readlink(f"/proc/1/fd/{fd}") for fd in os.listdir("/proc/1/fd")])
""",
        )
        assert str(backend._data_dir) not in links
        assert "seccomp" not in links
        folder = support.entry_of(backend, "sb-a").folder
        assert (folder / "state.json").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700


async def test_where_bubblewrap_does_not_work_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsafespace_gateway.backends.local import host

    monkeypatch.setattr(host, "find_bwrap", lambda: "/usr/bin/false")
    async with support.data_folder() as folder:
        with pytest.raises(ApiError, match="--insecure-no-isolation") as caught:
            async with support.started(folder):
                pass
        assert "bubblewrap failed" in caught.value.message
