"""What Jupyter clients see of a kernel that dies: nothing, as of a local process that has died.

A sandbox's agent ends every request in a dead kernel's place: an error, a reply, then idle, so that SDK and
REST get an answer. A Jupyter application looks at the process instead, and takes a reply for an answer: its
notebook would go on with the next cell. So these messages end here, and the application's manager decides.
"""

from __future__ import annotations

import logging

from llmsafespace_protocol.kernel_messages import AGENT_SESSION

from llmsafespace.decoding import BadMessage
from llmsafespace.messages import Message

log = logging.getLogger("llmsafespace.bridge")
_DEATHS = ("kernel_died", "oom", "expired", "aborted")  # ends by which the kernel is gone


class Deaths:
    """Lets a kernel's messages pass, and keeps back what is made up in its place; `dead` until `revive()`."""

    def __init__(self) -> None:
        self.dead = False
        self._held: list[Message] = []  # errors of the agent, until its reply says what they are about
        self._dropped = ""  # the request whose reply was kept back last: its idle follows

    def revive(self) -> None:
        """Another kernel is started."""
        self.dead = False
        self._held.clear()

    def passed(self, message: Message) -> list[Message]:
        """What now goes to the clients, in order."""
        try:
            return self._passed(message)
        except BadMessage:
            return [message]

    def _passed(self, message: Message) -> list[Message]:
        header = message.header()
        if header.session != AGENT_SESSION:
            return [] if self.dead else [message]
        if message.channel == "iopub" and header.msg_type == "error":
            self._held.append(message)
            return []
        parent = message.parent().msg_id
        if message.channel != "iopub" and self._says_death(message):
            self._dropped = parent
            self._held.clear()
            return []
        if header.msg_type == "status":
            state = message.content().get("execution_state")
            if state == "dead":
                self.dead = True
            if state == "dead" or (state == "idle" and parent and parent == self._dropped):
                self._held.clear()
                return []
        held, self._held = self._held, []
        return [] if self.dead else [*held, message]

    def _says_death(self, message: Message) -> bool:
        told = message.metadata().get("llmsafespace")
        if not isinstance(told, dict) or told.get("end") not in _DEATHS:
            return False
        log.warning("%s", message.content().get("evalue"))
        return True
