"""The local backend as an ordinary user: the other tests again, in a process that has given up root."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
USER = 65_432
FILES = (
    pytest.param("test_local_apart.py", marks=pytest.mark.heavy),  # over two minutes
    "test_local_clock.py",
    "test_local_isolation.py",
    "test_local_scheduling.py",
    "test_local_lifecycle.py",
    "test_local_pools.py",
    "test_local_umask.py",
)

# An ordinary user may be unable to enter the folders that interpreter and project are in (/root, say). So
# this process first covers such a folder, in a mount namespace of its own, by one in which only they are.
BECOME_USER = """
import ctypes, json, os, sys
uid, needed, argv = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, data=None):
    if libc.mount(source and os.fsencode(source), os.fsencode(target), kind, flags, data) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {source} at {target}")
def closed(path):
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(2, len(parts) + 1)]
    return next((each for each in above if not os.stat(each).st_mode & 1), None)
if libc.unshare(0x20000) != 0:
    raise OSError(ctypes.get_errno(), "cannot make a mount namespace")
mount(None, "/", None, 16384 | 1 << 18)
mount("tmpfs", "/mnt", b"tmpfs", 0, b"mode=0755")
hidden = {path: closed(path) for path in needed if closed(path)}
for number, path in enumerate(hidden):
    os.mkdir(f"/mnt/{number}")
    mount(path, f"/mnt/{number}", None, 4096)
for folder in set(hidden.values()):
    mount("tmpfs", folder, b"tmpfs", 0, b"mode=0755")
for number, path in enumerate(hidden):
    os.makedirs(path, exist_ok=True)
    mount(f"/mnt/{number}", path, None, 4096)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.chdir("/")
os.execv(argv[0], argv)
"""


def run_as_user(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `arguments` as an ordinary user whose home is `home`."""
    needed = [os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, PROJECT)]
    what = json.dumps([USER, list(dict.fromkeys(needed)), [sys.executable, *arguments]])
    return subprocess.run(
        [sys.executable, "-c", BECOME_USER, what],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=380,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="already an ordinary user")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("file", FILES)
def test_as_an_ordinary_user(file: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lsp-") as home:
        os.chown(home, USER, USER)
        options = ["-q", "-p", "no:cacheprovider", f"--rootdir={PROJECT}", "-c", f"{PROJECT}/pyproject.toml"]
        tests = str(PROJECT / "tests" / "integration" / file)
        ran = run_as_user(Path(home), "-m", "pytest", *options, "--timeout=300", tests)
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        left = [path.name for path in Path(home).iterdir()]
        assert left in ([], [".cache"])  # runtimes, where real ones were needed
