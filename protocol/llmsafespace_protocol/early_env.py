"""Environment variables that a process must have from its start: they cannot be bound to a warm kernel."""

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
_LATE = frozenset({"PYTHONUNBUFFERED", "PYTHONIOENCODING"})  # of no effect on a kernel, inherited by commands


def early(env: Mapping[str, str]) -> dict[str, str]:
    """Those of `env` that a process must have from its start."""
    return {name: value for name, value in env.items() if _is_early(name)}


def _is_early(name: str) -> bool:
    return name in _NAMES or (name.startswith(_PREFIXES) and name not in _LATE)
