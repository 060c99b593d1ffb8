"""Environment variables that take effect only at process start: a running kernel cannot be given them.

A bind with such variables starts a new kernel process instead of using the parked one.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def early(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `env` that take effect only at process start."""
    return {name: value for name, value in env.items() if _is_early(name)}


def _is_early(name: str) -> bool:
    return name in _NAMES or (name.startswith(_PREFIXES) and name not in _LATE)
