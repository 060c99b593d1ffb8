"""The local backend as an ordinary user: the other tests again, in a process that has given up root."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
USER = 65_432
FILES = ("test_local_isolation.py", "test_local_lifecycle.py", "test_local_pools.py")

# An ordinary user may be unable to enter the folder that the interpreter is in, so this process first makes
# it visible at /mnt in a mount namespace of its own.
BECOME_USER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def done(result):
    if result != 0: raise OSError(ctypes.get_errno(), "cannot prepare the user's view")
done(libc.unshare(0x20000))
done(libc.mount(None, b"/", None, 16384 | (1 << 18), None))
done(libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, b"mode=0755"))
for name, source in {"python": sys.base_prefix, "site": sys.argv[2], "project": sys.argv[3]}.items():
    os.mkdir("/mnt/" + name)
    done(libc.mount(source.encode(), ("/mnt/" + name).encode(), None, 4096, None))
uid = int(sys.argv[1])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.chdir("/")
os.execv("/mnt/python/bin/python3", ["/mnt/python/bin/python3", *sys.argv[4:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="already an ordinary user")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("file", FILES)
def test_as_an_ordinary_user(file: str) -> None:
    site = Path(msgspec.__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="lsp-home-") as home:
        os.chown(home, USER, USER)
        paths = ["/mnt/site", "/mnt/project", "/mnt/project/kernel-images/agent"]
        pytest_argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=/mnt/project"]
        pytest_argv += ["-c", "/mnt/project/pyproject.toml", f"/mnt/project/tests/integration/{file}", "--timeout=60"]
        ran = subprocess.run(
            [sys.executable, "-c", BECOME_USER, str(USER), str(site), str(ROOT), *pytest_argv],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": home,
                "TMPDIR": home,
                "PYTHONPATH": ":".join(paths),
                "PYTHONDONTWRITEBYTECODE": "1",
                "LD_LIBRARY_PATH": "/mnt/python/lib",
                "LOCAL_TEST_PREFIX": sys.base_prefix,
            },
            capture_output=True,
            text=True,
            timeout=380,
        )
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        assert list(Path(home).iterdir()) == []
