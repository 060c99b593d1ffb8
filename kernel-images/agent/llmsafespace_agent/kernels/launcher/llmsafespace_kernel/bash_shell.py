"""A bash that stays: cells run in it one after the other, and keep its folder, variables and functions.

It is an interactive bash (without terminal, editing or job control), because only that returns to its
next command after SIGINT instead of ending. Cells reach it as single-quoted words, that is as data.

A cell may redefine what it likes: functions named as builtins, aliases, traps, options. So what surrounds a
cell relies on none of that:

* Its commands are special builtins in POSIX mode, which bash finds before functions; an assignment enters
  that mode. Backslashes keep aliases away.
* The status is told by the message of an expansion that fails, `${name?message}`: that needs no command. It
  fails in a subshell, and in a list with `||`: so the line goes on, and `set -e` and traps do not notice.
* Tracing is off between cells, and what is outside a cell writes to /dev/null. Lines begin with a space:
  `HISTCONTROL` keeps them out of the history. The cell itself is put there.
* An interrupt ends the line of the cell, so the status is told once more by a line of its own.
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

_ARGV = ["bash", "--norc", "--noprofile", "--noediting", "+m", "+H", "+o", "history", "-i"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HIGH = 200
_NO_PROMPTS = "PS0= PS1= PS2=; \\unset PROMPT_COMMAND;"  # activating a virtual environment sets PS1, say
_REMEMBERED = 64 * 1024  # characters of a cell that goes into the history
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
            env={**os.environ, "PS1": "", "PS2": "", "HISTFILE": ""},
        )
        for descriptor in (commands, answers, errors):
            os.close(descriptor)
        self._answer_descriptor = answers
        self._status = 0  # of the last cell
        self._options: list[str] = []  # of SHELLOPTS, as the last cell left them
        self._write(
            f" exec 2>&{errors} {errors}>&-\n export -n PS1 PS2; unset HISTFILE; HISTCONTROL=ignorespace\n"
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
        last = f"POSIXLY_CORRECT=1; \\set +xv; {_NO_PROMPTS} {after} \\unset POSIXLY_CORRECT;"
        quiet = f"{{ {last} }} >/dev/null 2>&1"
        told = f"{self._telling(token, '$__llmsafespace_status $SHELLOPTS')} || {quiet}\n"
        begin = f" {{ POSIXLY_CORRECT=1; {before} }} >/dev/null 2>&1"
        self._write(f"{begin}; \\eval {shlex.quote(self._prologue(code) + code)} </dev/null; {told} {told}")
        status, options = (await self._answer(token)).split(" ")
        self._status, self._options = int(status), options.split(":")
        return self._status

    def _prologue(self, code: str) -> str:
        """A line before the cell's own: the cell finds `$?` and its options as the last one left them."""
        lines = [f"\\set -o {option};" for option in ("verbose", "xtrace") if option in self._options]
        lines.append("\\unset POSIXLY_CORRECT;")
        if "posix" in self._options:
            lines.append("\\set -o posix;")
        if len(code) <= _REMEMBERED:
            lines.append(f"\\history -s -- {shlex.quote(code)};")
        if self._status and "errexit" not in self._options:
            lines.append(f"(POSIXLY_CORRECT=1; \\exit {self._status});")
        return f"{{ {' '.join(lines)} }} >/dev/null 2>&1\n"

    def _telling(self, token: str, words: str) -> str:
        """A command that writes the expanded `words` between two tokens, and always fails.

        Within `words`, `$?` is 1 already: it is in `__llmsafespace_status`.
        """
        message = f'${{__llmsafespace_nothing?"{token} {words} {token}"}}'
        return f"( __llmsafespace_status=$?; __llmsafespace_nothing={message} ) 2>&{self._answer_descriptor}"

    async def ask(self, command: str) -> str:
        """The output of a command, asked between cells. Raises ShellEnded."""
        token = uuid.uuid4().hex
        self._write(f" {self._telling(token, f'$({{ {command}; }} 2>/dev/null </dev/null)')} || [[ a ]]\n")
        return await self._answer(token)

    async def _answer(self, token: str) -> str:
        loop = asyncio.get_running_loop()
        mark = token.encode()
        while True:
            if self._pending.count(mark) > 1:
                _, answer, self._pending = self._pending.split(mark, 2)
                return answer[1:-1].decode("utf-8", "replace")
            readable = loop.create_future()
            loop.add_reader(self._answers, _resolve, readable)
            try:
                await asyncio.wait([readable], timeout=_LOOK)
            finally:
                loop.remove_reader(self._answers)
            data = os.read(self._answers, 65536) if readable.done() else b""
            self._pending += data
            if (
                readable.done() and not data
            ):  # nobody holds the other end: bash has ended, or a cell closed it
                self._process.kill()
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
    """Commands that set `env`, and commands that put back what was there; other names are left out.

    The latter may run twice: what is put back is forgotten.
    """
    before, after = "", ""
    for index, (name, value) in enumerate(sorted(env.items())):
        if not _NAME.match(name):
            continue
        had, old = f"__llmsafespace_had_{index}", f"__llmsafespace_old_{index}"
        before += f"{had}=_${{{name}+x}} {old}=${{{name}-}}; \\export {name}={shlex.quote(value)}; "
        after += f'case ${{{had}-}} in _x) \\export {name}="${old}";; _) \\unset {name};; esac; '
        after += f"\\unset {had} {old}; "
    return before, after
