"""The Bash kernel: ipykernel's protocol around a bash that stays."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import subprocess
import sys
from typing import Any

from .answering import Answering
from .bash_shell import BashShell, ShellEnded
from .python_kernel import cell_env

_INTERRUPTED = 128 + signal.SIGINT
_WORD = re.compile(r"[^\s;|&()<>'\"`=]*\Z")
_MANY = 500


class BashKernel(Answering):
    """The output of the shell and its commands arrives at descriptors 1 and 2, which the streams capture."""

    implementation = "llmsafespace_bash"
    implementation_version = "1"
    banner = "Bash"
    language_info = {
        "name": "bash",
        "version": "",
        "mimetype": "text/x-sh",
        "codemirror_mode": "shell",
        "pygments_lexer": "bash",
        "file_extension": ".sh",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._shell: BashShell | None = None
        signal.signal(signal.SIGINT, _leave_to_the_shell)

    def bound(self) -> None:
        """Folder and environment are those of the person now: start the shell in them."""
        self._shell = BashShell()

    def pre_handler_hook(self) -> None:
        """SIGINT is for the shell, which is in our process group."""

    def post_handler_hook(self) -> None:
        """Nothing to restore."""

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        super().set_parent(ident, parent, channel)
        if channel == "shell":
            streams: list[Any] = [sys.stdout, sys.stderr]
            for stream in streams:
                stream.set_parent(parent)

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: Any = None,
        allow_stdin: bool = False,
        *,
        cell_meta: Any = None,
        cell_id: Any = None,
    ) -> dict[str, Any]:
        """The exit status decides: 0 is ok, 130 (SIGINT) is KeyboardInterrupt, others are ExitStatus."""
        status = 0
        if code.strip():
            status = await self._run(code, cell_env(cell_meta))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if status == 0:
            return {
                "status": "ok",
                "execution_count": self.execution_count,
                "payload": [],
                "user_expressions": {},
            }
        error = _error(status)
        if not silent:
            self.send_response(self.iopub_socket, "error", error)
        return {"status": "error", "execution_count": self.execution_count, **error}

    async def _run(self, code: str, env: dict[str, str]) -> int:
        try:
            return await self._living().run(code, env)
        except ShellEnded as end:
            self._living().close()
            self._shell = BashShell()
            print("the shell has ended; the next cell runs in a new one", file=sys.stderr)
            return end.status if end.status >= 0 else 128 - end.status

    def _living(self) -> BashShell:
        if self._shell is None:
            self._shell = BashShell()
        return self._shell

    async def _ask(self, command: str) -> str:
        try:
            return await self._living().ask(command)
        except ShellEnded:
            self._living().close()
            self._shell = None
            return ""

    async def do_complete(self, code: str, cursor_pos: int) -> dict[str, Any]:
        """What bash's compgen offers for the word before the cursor."""
        word = _word_before(code, cursor_pos)
        matches: list[str] = []
        if word.startswith("$"):
            found = await self._ask(f"compgen -v -- {shlex.quote(word[1:])} | head -{_MANY}")
            matches = ["$" + name for name in found.splitlines()]
        elif word:
            kinds = "-abckA function -f" if _is_command(code, cursor_pos, word) else "-f"
            found = await self._ask(f"compgen {kinds} -- {shlex.quote(word)} | head -{_MANY}")
            matches = found.splitlines()
        return {
            "status": "ok",
            "matches": sorted(set(matches)),
            "cursor_start": cursor_pos - len(word),
            "cursor_end": cursor_pos,
            "metadata": {},
        }

    async def do_inspect(
        self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()
    ) -> dict[str, Any]:
        """What bash's `type` and `help` say of the word at the cursor."""
        end = cursor_pos
        while end < len(code) and _WORD.match(code[end]):
            end += 1
        word = _word_before(code, end)
        text = ""
        if word:
            quoted = shlex.quote(word)
            text = await self._ask(f"type -- {quoted}; help -- {quoted}")
        data = {"text/plain": text} if text else {}
        return {"status": "ok", "found": bool(text), "data": data, "metadata": {}}

    async def do_is_complete(self, code: str) -> dict[str, Any]:
        """`bash -n` reads the cell without running it."""
        checked = await asyncio.to_thread(_check_syntax, code)
        if checked is None:
            return {"status": "unknown"}
        returncode, errors = checked
        if b"unexpected end of file" in errors or b"unexpected EOF" in errors:
            return {"status": "incomplete", "indent": ""}
        return {"status": "invalid" if returncode else "complete"}

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        if self._shell is not None:
            self._shell.close()
            self._shell = None
        return {"status": "ok", "restart": restart}


def _leave_to_the_shell(_number: int, _frame: Any) -> None:
    """A handler, not SIG_IGN, which the shell and its commands would inherit."""


def _check_syntax(code: str) -> tuple[int, bytes] | None:
    """What `bash -n` says of a cell, None when it cannot say."""
    try:
        checked = subprocess.run(
            ["bash", "-n"], input=code.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=2
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return checked.returncode, checked.stderr


def _error(status: int) -> dict[str, Any]:
    if status == _INTERRUPTED:
        return {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
    return {"ename": "ExitStatus", "evalue": str(status), "traceback": [f"exit status {status}"]}


def _word_before(code: str, position: int) -> str:
    found = _WORD.search(code[:position])
    return found.group() if found else ""


def _is_command(code: str, position: int, word: str) -> bool:
    before = code[: position - len(word)].rstrip(" \t")
    return not before or before[-1] in "\n;|&(`"
