"""Each execute_request gets its reply, also one that ipykernel itself cannot serve."""

from __future__ import annotations

import traceback
from typing import Any

from ipykernel.kernelbase import Kernel


class Answering(Kernel):
    """What our kernels of all languages share."""

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
