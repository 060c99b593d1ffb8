"""A bash that stays: cells run in it one after the other, and keep its folder, variables and functions.

It is an interactive bash (without terminal, editing or job control), because only that returns to its
next command after SIGINT instead of ending. Cells reach it as single-quoted words, that is as data.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shlex
import subprocess
import uuid
from typing import Any

_ARGV = ["bash", "--norc", "--noprofile", "--noediting", "+m", "+H", "-i"]
_END = "__llmsafespace_end"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HIGH = 200
_LOOK = 0.2  # seconds between looks whether bash has ended


class ShellEnded(Exception):
    """The cell ended the shell itself (exit, exec, set -e); `status` is its exit status, -N for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the shell ended with status {status}")
        self.status = status


class BashShell:
    """Writes to descriptors 1 and 2 of this process; `run` awaits the end of a cell."""

    def __init__(self) -> None:
        commands, self._commands = os.pipe()
        self._answers, low = os.pipe()
        answers = _high(low)
        os.set_blocking(self._answers, False)
        errors = _high(os.dup(2))
        self._pending = b""
        self._process = subprocess.Popen(
            _ARGV,
            stdin=commands,
            stderr=subprocess.DEVNULL,  # where it complains that it has no terminal, before its first command
            pass_fds=(answers, errors),
            env={**os.environ, "PS1": "", "PS2": ""},
        )
        for descriptor in (commands, answers, errors):
            os.close(descriptor)
        self._write(
            f"exec 2>&{errors} {errors}>&-\n"
            f"""{_END}() {{ printf '%s %s\\0' "$1" "$2" >&{answers}; return "${{3-$2}}"; }}\n"""
            "export -n PS1 PS2; set +o history; unset HISTFILE\n"
        )

    def _write(self, text: str) -> None:
        data = memoryview(text.replace("\0", "").encode("utf-8", "surrogateescape"))
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            raise ShellEnded(self._process.wait()) from None

    async def run(self, code: str, env: dict[str, str]) -> int:
        """Run a cell, with `env` for it alone. Returns its status; raises ShellEnded."""
        before, after = environment_lines(env)
        token = uuid.uuid4().hex
        if after:
            end = f"__llmsafespace_status=$?\n{after}{_END} {token} $__llmsafespace_status\n"
        else:
            end = f"{_END} {token} $?\n"
        self._write(f"{before}eval {shlex.quote(code)} </dev/null\n{end}")
        return int(await self._answer(token))

    async def ask(self, command: str) -> str:
        """The output of a command, asked between cells; `$?` stays. Raises ShellEnded."""
        token = uuid.uuid4().hex
        self._write(f'{_END} {token} "$({{ {command}; }} 2>/dev/null </dev/null)" "$?"\n')
        return await self._answer(token)

    async def _answer(self, token: str) -> str:
        loop = asyncio.get_running_loop()
        while True:
            while b"\0" in self._pending:
                answer, _, self._pending = self._pending.partition(b"\0")
                words = answer.decode("utf-8", "replace")
                if words.startswith(token):
                    return words[len(token) + 1 :]
            readable = loop.create_future()
            loop.add_reader(self._answers, _resolve, readable)
            try:
                await asyncio.wait([readable], timeout=_LOOK)
            finally:
                loop.remove_reader(self._answers)
            data = os.read(self._answers, 65536) if readable.done() else b""
            self._pending += data
            if readable.done() and not data:  # nobody holds the other end any more
                raise ShellEnded(self._process.wait())
            if not data and self._process.poll() is not None:
                raise ShellEnded(self._process.returncode)

    def close(self) -> None:
        """End the shell and forget it."""
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


def _high(descriptor: int) -> int:
    """The same file under a number that scripts do not use for their own redirections."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(descriptor)
    return high


def _resolve(future: Any) -> None:
    if not future.done():
        future.set_result(None)


def environment_lines(env: dict[str, str]) -> tuple[str, str]:
    """Commands that set `env`, and commands that put back what was there; other names are left out."""
    before, after = "", ""
    for index, (name, value) in enumerate(sorted(env.items())):
        if not _NAME.match(name):
            continue
        had, old = f"__llmsafespace_had_{index}", f"__llmsafespace_old_{index}"
        before += f"{had}=${{{name}+x}} {old}=${{{name}-}}; export {name}={shlex.quote(value)}\n"
        after += (
            f'if [ -n "${had}" ]; then export {name}="${old}"; else unset {name}; fi; unset {had} {old}\n'
        )
    return before, after
