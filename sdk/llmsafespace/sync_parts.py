"""The synchronous twins of a sandbox's parts: files, contexts, commands, and streamed output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from llmsafespace.commands import AsyncCommands
from llmsafespace.commands import Command as AsyncCommand
from llmsafespace.contexts import AsyncContexts, ContextLike, ContextList
from llmsafespace.events import End, Event, InputRequest
from llmsafespace.files import AsyncFiles, FileList, Progress
from llmsafespace.models import CommandResult, Context, FileEvent, FileInfo
from llmsafespace.outputs import AsyncOutput, Callbacks
from llmsafespace.portal import Portal, SyncIterator
from llmsafespace.results import Execution


class Output:
    """The output of one execution as it comes: iterate for text, or over `.events()` for typed events.

    It starts with the first iteration. Leaving it early (`close`, or simply dropping it) interrupts what
    still runs. `execution` is what has come so far, and whole after the end.
    """

    def __init__(self, portal: Portal, output: AsyncOutput) -> None:
        self._portal = portal
        self._output = output
        self._texts = SyncIterator(portal, output)

    @property
    def id(self) -> str:
        """The execution's id."""
        return self._output.id

    @property
    def execution(self) -> Execution:
        """What has come so far."""
        return self._output.execution

    @property
    def end(self) -> End | None:
        """How it ended, None while it runs."""
        return self._output.end

    def events(self) -> Iterator[Event]:
        """Every event, the End last."""
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[Sequence[Event]]:
        """The events, as many at once as have come."""
        while True:
            try:
                batch = self._portal.run(self._output.take())
            except StopAsyncIteration:
                return
            yield batch

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """Stop listening; what still runs is interrupted."""
        self._texts.close()

    def answer(self, line: str) -> None:
        """Give the code the line of input that it waits for."""
        self._portal.run(self._output.answer(line))

    def finish(self, callbacks: Callbacks | None = None) -> Execution:
        """Listen to the end. The callbacks are called here, in the calling thread."""
        if callbacks is None:
            return self._portal.run(self._output.finish())
        try:
            for event in self.events():
                value = callbacks.call(event)
                if isinstance(event, InputRequest):
                    self.answer(str(value))
        finally:
            self.close()
        return self.execution

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Files:
    """Read, write, list and change a sandbox's files. Paths may be relative to /workspace."""

    def __init__(self, portal: Portal, files: AsyncFiles) -> None:
        self._portal = portal
        self._files = files

    def read(self, path: str) -> bytes:
        """A file's content. Raises NotFound."""
        return self._portal.run(self._files.read(path))

    def write(self, path: str, content: str | bytes | IO[bytes]) -> FileInfo:
        """Write a file, whole or not at all; its folders are made."""
        return self._portal.run(self._files.write(path, content))

    def list(self, path: str = "/workspace", *, depth: int = 1) -> FileList:
        """What is in a folder, `depth` levels deep."""
        return self._portal.run(self._files.list(path, depth=depth))

    def stat(self, path: str) -> FileInfo:
        """One file or folder. Raises NotFound."""
        return self._portal.run(self._files.stat(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or a folder (`recursive` when it is not empty). Raises NotFound."""
        self._portal.run(self._files.remove(path, recursive=recursive))

    def rename(self, path: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Move a file or folder. Raises InvalidRequest when there is something at `target`."""
        return self._portal.run(self._files.rename(path, target, overwrite=overwrite))

    def mkdir(self, path: str) -> FileInfo:
        """Make a folder, and those above it."""
        return self._portal.run(self._files.mkdir(path))

    def watch(self, path: str = "/workspace", *, recursive: bool = False) -> SyncIterator[FileEvent]:
        """What changes beneath a path, from the first look until the iteration is left.

        It looks twice a second; what comes and goes between two looks is not seen.
        """
        return SyncIterator(self._portal, self._files.watch(path, recursive=recursive))

    def upload(
        self,
        remote: str,
        local_path: str | Path | None = None,
        content: str | bytes | IO[bytes] | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> FileInfo:
        """Write a local file, or content, to `remote`. `on_progress` hears how many bytes each step sent."""
        return self._portal.run(self._files.upload(remote, local_path, content, on_progress=on_progress))

    def download(
        self, remote: str, local_path: str | Path | None = None, *, on_progress: Progress | None = None
    ) -> bytes | Path:
        """A file's content; with `local_path` it is streamed there, and that path is returned."""
        return self._portal.run(self._files.download(remote, local_path, on_progress=on_progress))


class Contexts:
    """Make, list, restart and remove a sandbox's contexts."""

    def __init__(self, portal: Portal, contexts: AsyncContexts) -> None:
        self._portal = portal
        self._contexts = contexts

    def create(
        self,
        language: str | None = None,
        *,
        name: str = "",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Context:
        """A further context. Without a language it has the sandbox's own."""
        return self._portal.run(self._contexts.create(language, name=name, cwd=cwd, env=env))

    def list(self) -> ContextList:
        """All contexts, the default one first."""
        return self._portal.run(self._contexts.list())

    def restart(self, context: ContextLike | None = None) -> Context:
        """Restart a context (the default one): its variables are gone, its files stay."""
        return self._portal.run(self._contexts.restart(context))

    def remove(self, context: ContextLike) -> bool:
        """End a context; False when there was none."""
        return self._portal.run(self._contexts.remove(context))

    def default_id(self) -> str:
        """The id of the context that code runs in when none is named."""
        return self._portal.run(self._contexts.default_id())

    def of_language(self, language: str) -> Context:
        """The context for code in this language; made when there is none yet."""
        return self._portal.run(self._contexts.of_language(language))


class Command:
    """A command that runs in the background."""

    def __init__(self, portal: Portal, command: AsyncCommand) -> None:
        self._portal = portal
        self._command = command
        self.id = command.id
        self.command = command.command
        self.pid = command.pid

    def running(self) -> bool:
        """True while it runs."""
        return self._portal.run(self._command.running())

    def stream(self, after: int = 0) -> Output:
        """Its output from behind event `after`, as it comes, to its end. Leaving early does not stop it."""
        return Output(self._portal, self._command.stream(after))

    def wait(self) -> CommandResult:
        """Its output and exit code, when it has ended."""
        return self._portal.run(self._command.wait())

    def send_stdin(self, data: str, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""
        self._portal.run(self._command.send_stdin(data, eof=eof))

    def signal(self, name: str = "SIGTERM") -> None:
        """Send a signal to its process group."""
        self._portal.run(self._command.signal(name))

    def kill(self) -> bool:
        """End it at once; False when it had ended."""
        return self._portal.run(self._command.kill())

    def __repr__(self) -> str:
        return repr(self._command)


CommandList = list[Command]


class Commands:
    """A sandbox's background commands."""

    def __init__(self, portal: Portal, commands: AsyncCommands) -> None:
        self._portal = portal
        self._commands = commands

    def start(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: str | None = None,
    ) -> Command:
        """Start a command in the background. Without `stdin` its standard input stays open to send_stdin."""
        started = self._commands.start(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)
        return Command(self._portal, self._portal.run(started))

    def list(self) -> CommandList:
        """The commands that the sandbox still knows, newest first."""
        return [Command(self._portal, command) for command in self._portal.run(self._commands.list())]

    def kill(self, command_id: str) -> bool:
        """End a command; False when it had ended."""
        return self._portal.run(self._commands.kill(command_id))
