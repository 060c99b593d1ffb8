"""How the worker starts a process: fork, and a pipe that tells how exec went, so that nobody waits for it."""

# ruff: noqa: SIM105  # contextlib would cost the worker memory

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import os

_ABOVE = 100  # above the numbers that a process is given
_DEFAULT = (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGCHLD)  # what an interpreter changes
_PATH = b"/bin:/usr/bin"
_NOTHING = b"/dev/null"


class Wish:
    """What is to be started: `numbers` are those that its descriptors get; the agent asked by `number`."""

    def __init__(
        self,
        number: int,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        numbers: list[int],
        dies_first: bool,
    ) -> None:
        self.number = number
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.numbers = numbers
        self.dies_first = dies_first
        self.pid = 0


def spawn(wish: Wish, descriptors: list[int], nice: int) -> int:
    """Fork. Returns a pipe that ends at exec, or brings the errno of a failure. Raises OSError."""
    reading, writing = os.pipe()
    try:
        wish.pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if wish.pid:
        os.close(writing)
        return reading
    failure = 1
    try:
        _become(wish, descriptors, nice)
    except OSError as error:
        failure = error.errno or 1
    finally:
        os.write(writing, failure.to_bytes(4, "little"))
        os._exit(127)


def _become(wish: Wish, descriptors: list[int], nice: int) -> None:
    _signal.set_wakeup_fd(-1)
    os.setsid()
    for number in _DEFAULT:
        _signal.signal(number, _signal.SIG_DFL)
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for one in descriptors]
    for fd, number in zip(moved, wish.numbers, strict=True):
        os.dup2(fd, number)
    for number in {0, 1, 2}.difference(wish.numbers):
        os.dup2(os.open(_NOTHING, os.O_RDWR), number)
    if nice:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except OSError:
            pass
    os.chdir(wish.cwd)
    _exec(wish.argv, wish.env)


def _exec(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """As execvpe: the first program of that name on the PATH that the process is to have. Raises OSError."""
    if b"/" in argv[0]:
        os.execve(argv[0], argv, env)  # noqa: S606
    refused: OSError = FileNotFoundError(2, "no such program")
    for folder in env.get(b"PATH", _PATH).split(b":"):
        try:
            os.execve((folder or b".") + b"/" + argv[0], argv, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = error
    raise refused
