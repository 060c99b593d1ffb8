"""The data dir belongs to one gateway at a time: a lock for life, taken before anything in it is touched.

The lock is the kernel's (flock on the folder itself): it ends with the process, however that dies, and there
is no file that somebody could delete to get past it. Its descriptor is closed on exec, so that the keepers
of sandboxes, which outlive the gateway, never hold it. It needs a file system of this machine: over NFS,
where such locks are only sometimes seen by others, it may be refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from llmsafespace_gateway.errors import ApiError

HOLDER = "gateway.json"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has the lock: for the message to whoever comes second, and decides nothing."""

    pid: int
    since: float
    serves: str


class DataDir:
    """A data dir that is this process's until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, name: str, serves: str) -> DataDir:
        """Make the folder if it is missing, and lock it. `serves`: where this gateway can be reached.

        Raises ApiError, naming the gateway that has it; OSError when the folder cannot be made.
        """
        path = Path(name).expanduser().absolute()
        if not path.exists():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o711)  # whatever the umask: other uids pass through it
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _in_use(path) from error
        except OSError as error:
            os.close(descriptor)
            raise ApiError(
                "service_unavailable",
                f"the data dir {path} cannot be locked ({error.strerror}): "
                "give one on a file system of this machine with --data-dir",
            ) from error
        with contextlib.suppress(OSError):  # a full disk keeps nobody from serving
            holder = Holder(pid=os.getpid(), since=time.time(), serves=serves)
            (path / HOLDER).write_bytes(msgspec.json.encode(holder))
        return cls(path, descriptor)

    def release(self) -> None:
        """Let the next gateway have it."""
        with contextlib.suppress(OSError):
            (self.path / HOLDER).unlink()
        os.close(self._descriptor)


def holder(path: Path) -> str | None:
    """Who has the data dir `path`, in words; None when nobody has. OSError when it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found = msgspec.json.decode((path / HOLDER).read_bytes(), type=Holder)
        except (OSError, ValueError):
            return "another gateway"
        return f"process {found.pid}, serving {found.serves}"
    finally:
        os.close(descriptor)
    return None


def _in_use(path: Path) -> ApiError:
    advice = "stop that one, or give this one another --data-dir"
    try:
        holder = msgspec.json.decode((path / HOLDER).read_bytes(), type=Holder)
    except (OSError, ValueError):
        return ApiError("conflict", f"another gateway has the data dir {path}: {advice}")
    since = datetime.fromtimestamp(holder.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return ApiError(
        "conflict",
        f"another gateway has the data dir {path}: process {holder.pid}, since {since}, "
        f"serving {holder.serves}; {advice}",
        {"pid": holder.pid},
    )
