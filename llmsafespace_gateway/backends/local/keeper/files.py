"""Small files, folders and descriptors: what a keeper needs of them, and no more."""

# ruff: noqa: SIM105  # contextlib would cost each keeper a few milliseconds and more memory

from __future__ import annotations

import fcntl
import os

_FIRST_FD = 20  # above the fixed numbers of descriptors


def read_file(path: str) -> str:
    """The text of a small file, '' when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_file(path: str, text: str) -> None:
    """Write a small file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def write_reserved(path: str, text: str) -> bool:
    """Overwrite a file whose room was reserved with `text` and white space; False when that is too little."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            content = text.encode().ljust(os.fstat(fd).st_size)
            return os.write(fd, content) == len(content)
        finally:
            os.close(fd)
    except OSError:
        return False


def remove_tree(path: str) -> None:
    """Remove a folder with everything in it; links are not followed.

    A file called lock goes last, as it tells others that somebody is at it. What another process removes or
    adds meanwhile does no harm: the next sweep takes what is left.
    """
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name == "lock")
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            try:
                os.unlink(entry.path)
            except OSError:
                pass
    try:
        os.rmdir(path)
    except OSError:
        pass


def place_descriptors(wanted: dict[int, int]) -> None:
    """Put each descriptor at its number, to be inherited; all others are closed by exec."""
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD) for number, fd in wanted.items()}
    for number, fd in moved.items():
        os.dup2(fd, number, inheritable=True)
