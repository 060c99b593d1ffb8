"""Each execute_request gets its reply, also one that ipykernel itself cannot serve."""

from __future__ import annotations

import traceback
from typing import Any

from ipykernel.kernelbase import Kernel

_HEADER = 3  # of the frames of a request: identity, delimiter, signature, header
PROBE, SKIP = "llmsafespace_probe", "llmsafespace_skip"
_PROBE, _SKIP = PROBE.encode(), SKIP.encode()


class Answering(Kernel):
    """What our kernels of all languages share."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._skipped: set[str] = set()
        super().__init__(*arguments, **options)

    async def dispatch_shell(self, msg: Any, *arguments: Any, **options: Any) -> Any:
        """A probe is answered on both channels, and leaves no trace: output goes on to belong to the cell."""
        if len(msg) > _HEADER and _PROBE in bytes(msg[_HEADER].buffer):
            session: Any = self.session
            idents, parts = session.feed_identities(msg, copy=False)
            probe = session.deserialize(parts, content=True, copy=False)
            if probe["msg_type"] == f"{PROBE}_request":
                session.send(self._answers, f"{PROBE}_reply", {}, probe, ident=idents)
                session.send(self.iopub_socket, PROBE, {}, probe, ident=self._topic(PROBE))
                return
        await super().dispatch_shell(msg, *arguments, **options)

    async def dispatch_control(self, msg: Any, *arguments: Any, **options: Any) -> Any:
        """A request whose end has been told to its client already is not served when its turn comes."""
        if len(msg) > _HEADER and _SKIP in bytes(msg[_HEADER].buffer):
            session: Any = self.session
            parts = session.feed_identities(msg, copy=False)[1]
            skip = session.deserialize(parts, content=True, copy=False)
            if skip["msg_type"] == SKIP:
                self._skipped.add(skip["content"]["msg_id"])
                return
        await super().dispatch_control(msg, *arguments, **options)

    def should_handle(self, stream: Any, msg: Any, idents: Any) -> Any:
        """False for what was told to be skipped."""
        if self._skipped and msg["header"]["msg_id"] in self._skipped:
            self._skipped.discard(msg["header"]["msg_id"])
            return False
        return super().should_handle(stream, msg, idents)

    @property
    def _answers(self) -> Any:
        if getattr(self, "_supports_kernel_subshells", False):
            return self.shell_channel_thread.manager.get_subshell_to_shell_channel_socket(None)
        return self.shell_stream

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """As ipykernel does it; what it cannot do is told in an error reply instead of the log alone."""
        code = parent["content"].get("code")
        if not isinstance(code, str):
            self._fail(stream, ident, parent, TypeError(f"code must be text, not {type(code).__name__}"))
            return
        try:
            await super().execute_request(stream, ident, parent)
        except Exception as error:
            self.log.exception("an execute_request failed in the kernel itself")
            self._fail(stream, ident, parent, error)

    def _fail(self, stream: Any, ident: Any, parent: Any, error: Exception) -> None:
        try:
            value = str(error)
        except Exception:
            value = "(its text could not be made)"
        name = type(error).__name__
        told = {"ename": name, "evalue": value, "traceback": traceback.format_tb(error.__traceback__)}
        told["traceback"] = [*told["traceback"], f"{name}: {value}"]
        session: Any = self.session
        if not parent["content"].get("silent"):
            session.send(self.iopub_socket, "error", told, parent=parent, ident=self._topic("error"))
        reply = {"status": "error", "execution_count": self.execution_count, **told}
        session.send(stream, "execute_reply", reply, parent, ident=ident)
