"""What can be given to a kernel process that already runs."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = {
    "LANG": "the locale is set when the interpreter starts",
    "LANGUAGE": "the locale is set when the interpreter starts",
    "GLIBC_TUNABLES": "the C library reads it when a process starts",
    "IPYTHONDIR": "IPython reads it when the kernel starts",
    "MPLCONFIGDIR": "matplotlib reads it when it is imported",
    "OPENSSL_CONF": "OpenSSL reads it when it is loaded",
}
_PREFIXES = {
    "LD_": "the dynamic linker reads it when a process starts",
    "LC_": "the locale is set when the interpreter starts",
    "MALLOC_": "the C library reads it when a process starts",
    "PYTHON": "the interpreter reads it when it starts",
    "JUPYTER_": "the kernel reads it when it starts",
    "OMP_": "numeric libraries read it when they are loaded",
    "GOMP_": "numeric libraries read it when they are loaded",
    "KMP_": "numeric libraries read it when they are loaded",
    "OPENBLAS_": "numeric libraries read it when they are loaded",
    "GOTO_": "numeric libraries read it when they are loaded",
    "BLIS_": "numeric libraries read it when they are loaded",
    "MKL_": "numeric libraries read it when they are loaded",
    "NUMEXPR_": "numeric libraries read it when they are loaded",
    "NPY_": "numeric libraries read it when they are loaded",
    "VECLIB_": "numeric libraries read it when they are loaded",
}
_LATE = frozenset({"PYTHONUNBUFFERED", "PYTHONIOENCODING"})  # of no effect on a kernel, inherited by commands


def cannot_bind_late(env: Mapping[str, str]) -> str | None:
    """Why `env` cannot be given to a process that already runs, or None when it can."""
    for name in env:
        if name in _LATE:
            continue
        reason = _NAMES.get(name) or next(
            (why for prefix, why in _PREFIXES.items() if name.startswith(prefix)), None
        )
        if reason:
            return f"{name}: {reason}"
    return None
