"""The table of system calls: current, right, and within what container engines allow."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from llmsafespace_gateway.backends.local.isolation import numbering, policy, syscalls

PROFILE = Path(__file__).with_name("container_profile.txt")
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
TABLE = syscalls.ALLOWED | syscalls.CHECKED | syscalls.UNCHARGED

# What containers may do and sandboxes may not, with the reason.
REFUSED = {
    "sets the clock": "adjtimex clock_adjtime",
    "watches the whole file system": "fanotify_mark",
    "asynchronous I/O of the kernel, hardly used": (
        "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit"
    ),
    "reaches other processes": "process_mrelease process_vm_readv process_vm_writev ptrace",
    "tells of mounts": "listmount statmount name_to_handle_at",
    "memory that nobody can see": "memfd_secret",
    "changes how the processor runs a process": "map_shadow_stack modify_ldt",
    "newer than the table: ENOSYS": "getxattrat listxattrat removexattrat setxattrat",
    "tracing": "uretprobe",
}


def profile() -> set[str]:
    lines = PROFILE.read_text(encoding="utf-8").splitlines()
    return {name for line in lines if not line.startswith("#") for name in line.split()}


def test_the_table_is_what_the_policy_names() -> None:
    """As numbering.py would write it, with the numbers that it has."""
    tables = [{name: number for name, pair in TABLE.items() if (number := pair[column])} for column in (0, 1)]
    tables[0]["read"] = 0  # the only call whose number is 0
    tables[1]["io_setup"] = 0
    written = Path(syscalls.__file__).read_text(encoding="utf-8")
    assert numbering.render(tables) == written


@pytest.mark.parametrize("column", [0, 1], ids=["x86_64", "aarch64"])
def test_the_numbers_are_the_kernels(column: int) -> None:
    """Those of the headers here, as far as these go."""
    found = next((Path(name) for name in HEADERS[("x86_64", "aarch64")[column]] if Path(name).exists()), None)
    if found is None or (column == 0 and platform.machine() != "x86_64"):
        pytest.skip("the kernel's headers are not installed here (Debian: linux-libc-dev)")
    defined = re.findall(r"#define (?:__NR|__NR3264)_(\w+)\s+(\d+)", found.read_text(encoding="utf-8"))
    numbers = {name: int(number) for name, number in defined}
    assert len(numbers) > 250
    # The generic header has one name for both sizes of file offsets.
    assert [
        (name, pair[column], numbers[name])
        for name, pair in TABLE.items()
        if name in numbers and pair[column] is not None and numbers[name] != pair[column]
    ] == []


def test_no_more_than_containers_may() -> None:
    """Everything allowed is within the containers' default profile; clone3 is answered with ENOSYS."""
    assert (set(policy.ALLOWED) | set(policy.CHECKED)) - profile() == {"clone3"}


def test_what_containers_may_and_sandboxes_not() -> None:
    """Each of them has a reason; calls of 32-bit systems have no number here."""
    of_32_bits = re.compile(
        r".*(32|64|_time64)|_?llseek|_newselect|ipc|mmap2|recv|send|sig\w+|socketcall|ugetrlimit|waitpid|"
        r"arm_\w+|breakpoint|cacheflush|set_tls|sync_file_range2|epoll_(ctl|wait)_old|riscv\w+"
    )
    missing = profile() - set(policy.ALLOWED) - set(policy.CHECKED)
    stated = {name for names in REFUSED.values() for name in names.split()}
    assert {name for name in missing if not of_32_bits.fullmatch(name)} == stated
