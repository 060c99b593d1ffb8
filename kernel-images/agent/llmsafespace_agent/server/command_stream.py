"""The command stream: a command's output from its journal, then its account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmsafespace_agent.server.command import Command
from llmsafespace_agent.server.journal import Entry
from llmsafespace_agent.server.reader import Reader
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import CommandOutput, Gap, OpenCommand, Opened

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent


class CommandStream:
    """Serves one follower of one command until its end. Raises AgentError when it cannot."""

    def __init__(self, agent: Agent, stream: FrameStream, open_: OpenCommand) -> None:
        self._agent = agent
        self._stream = stream
        self._command: Command = agent.commands.get(open_.command)
        journal = self._command.journal
        self._reader = Reader(journal, stream, self, open_.after, lambda entry: True, self._finish)

    def start(self) -> None:
        """Answer `Opened`, then send output."""
        self._agent.connected += 1
        self._stream.on_close = self._closed
        self._send(Opened())
        self._stream.receive(lambda kind, body: self._stream.close())
        self._reader.start()
        if self._command.running:
            self._command.on_end.append(self._ended)
        else:
            self._ended()

    def entry(self, entry: Entry) -> None:
        """Send a piece of output."""
        self._send(CommandOutput(entry.seq, entry.to, entry.body.decode()))

    def gap(self, missed: int, resume: int) -> None:
        """Tell how many pieces were lost."""
        self._send(Gap(missed, resume))

    def _send(self, document: msgspec.Struct) -> None:
        self._stream.send(FrameKind.JSON, msgspec.json.encode(document))

    def _ended(self) -> None:
        self._reader.finish(self._command.journal.head)

    def _finish(self) -> None:
        self._send(self._command.info())
        self._stream.close()

    def _closed(self, error: Exception | None) -> None:
        self._reader.stop()
        if self._ended in self._command.on_end:
            self._command.on_end.remove(self._ended)
        self._agent.connected -= 1
        self._agent.activity()
