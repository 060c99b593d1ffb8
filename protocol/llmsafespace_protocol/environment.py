"""Environment variables: which ones a process can be given, and which take effect only at its start.

A running kernel cannot be given the latter: a bind with such variables starts a new kernel process instead of
using the parked one.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_ENV = 1024 * 1024  # bytes of all names and values
MAX_VARIABLE = 128 * 1024 - 2  # bytes of one name and value: MAX_ARG_STRLEN of execve(2) less `=` and NUL

_NAMES = frozenset(
    {
        "LANG",  # the interpreter sets its locale when it starts
        "LANGUAGE",
        "IPYTHONDIR",  # IPython reads it when the kernel starts
        "MPLCONFIGDIR",  # matplotlib reads it when it is imported
        "OPENSSL_CONF",  # OpenSSL reads it when it is loaded
    }
)
_PREFIXES = (
    "LD_",  # the dynamic linker
    "LC_",
    "MALLOC_",  # the C library
    "GLIBC_",
    "PYTHON",  # the interpreter
    "JUPYTER_",  # the kernel
    "OMP_",  # numeric libraries read these when they are loaded
    "GOMP_",
    "KMP_",
    "OPENBLAS_",
    "GOTO_",
    "BLIS_",
    "MKL_",
    "NUMEXPR_",
    "NPY_",
    "VECLIB_",
)
# These do nothing in a kernel, and the commands that it starts inherit them: they can be set at any time.
_LATE = frozenset({"PYTHONUNBUFFERED", "PYTHONIOENCODING"})


def problem(env: Mapping[str, str], longest: int | None = MAX_VARIABLE) -> str | None:
    """What keeps a process from being given these variables, None where nothing does.

    `longest` is the size of the largest variable in bytes; None is for code that gets variables without a
    new process. Values may be secret: the text names the variable and never quotes its value.
    """
    total = 0
    for name, value in env.items():
        shown = f"{name!r:.80}"
        if not name or "=" in name or "\0" in name:
            return (
                f"{shown} cannot be the name of a variable: it must have a character, and neither = nor NUL"
            )
        if "\0" in value:
            return f"the value of {shown} contains NUL (character {value.index(chr(0))})"
        try:
            size = len(name.encode()) + len(value.encode())
        except UnicodeEncodeError:
            return f"{shown} or its value is not valid Unicode"
        if longest is not None and size > longest:
            return f"{shown} has {size} bytes, at most {longest} are possible; put it into a file"
        total += size
    if total > MAX_ENV:
        largest = max(env, key=lambda name: len(env[name]))
        return (
            f"all variables have {total} bytes, at most {MAX_ENV} are possible; put large values into files "
            f"(the largest is {largest!r:.80})"
        )
    return None


def early(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `env` that take effect only at process start."""
    return {name: value for name, value in env.items() if _is_early(name)}


def _is_early(name: str) -> bool:
    return name in _NAMES or (name.startswith(_PREFIXES) and name not in _LATE)
