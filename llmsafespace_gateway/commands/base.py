"""What all subcommands share: options, exit status, errors in one line, tables."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from jupyter_core.application import JupyterApp
from sqlalchemy.exc import SQLAlchemyError
from traitlets import default

from llmsafespace_gateway import configuration
from llmsafespace_gateway.app import GatewayApp
from llmsafespace_gateway.configuration import UsageError
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, sqlite_url, stated_url


class Command(JupyterApp):
    """A subcommand. Exits with 0; with 1 when it failed; with 2 when the command line is wrong.

    Subclasses define `run`, or `subcommands`. `arguments` names the words that follow the options.
    """

    version = GatewayApp.version
    arguments: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, Any]] = {"config": "JupyterApp.config_file"}
    flags: ClassVar[dict[str, Any]] = {}
    subcommands: ClassVar[dict[str, Any]] = {}
    classes: ClassVar[list[type[Any]]] = [GatewayApp]

    @default("config_file_name")
    def _default_config_file_name(self) -> str:
        return GatewayApp.CONFIG_FILE

    def initialize(self, argv: Any = None) -> None:
        """Take the command line and the gateway's configuration file in."""
        try:
            configuration.load(self, argv, GatewayApp, self.arguments)
            if self.subapp is None:
                self.gateway = GatewayApp(config=self.config)
        except ApiError as error:
            self._exit_with(error)

    def _create_loader(self, argv: Any, aliases: Any, flags: Any, classes: Any) -> Any:
        return configuration.StrictLoader(argv, aliases, flags, classes=classes, log=self.log)

    def start(self) -> None:
        """Run, and exit."""
        super().start()
        try:
            status = asyncio.run(self.run())
        except ApiError as error:
            self._exit_with(error)
        except (OSError, SQLAlchemyError, RuntimeError) as error:
            reason = getattr(error, "orig", None) or error
            self._exit_with(
                ApiError("service_unavailable", f"the store cannot be used: {reason}; check --data-dir")
            )
        else:
            raise SystemExit(status)

    async def run(self) -> int:
        """Do it; the exit status. Raises ApiError, UsageError when the command line is wrong."""
        raise UsageError(f"expected one of these commands: {', '.join(self.subcommands)}")

    def word(self, name: str) -> str:
        """The argument of this name. Raises UsageError when it is missing."""
        at = self.arguments.index(name)
        if at >= len(self.extra_args):
            raise UsageError(f"{name} is missing: {self.name} {' '.join(self.arguments)}")
        return str(self.extra_args[at])

    def needed(self, option: str) -> str:
        """The value of an option that has no default. Raises UsageError when it is not given."""
        value = getattr(self, option)
        if not value:
            raise UsageError(f"--{option} is needed; see {self.name} --help")
        return str(value)

    @property
    def data_dir_path(self) -> Path:
        """The gateway's data dir, as an absolute path."""
        return Path(self.gateway.data_dir).expanduser().absolute()

    def store_url(self, make: bool = False) -> str:
        """The URL of the gateway's store. Raises ApiError when there is none; `make` makes its data dir."""
        if url := stated_url(self.gateway.database_url, self.gateway.database_url_file):
            return url
        folder = self.data_dir_path
        if make:
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        elif not (folder / "db.sqlite").exists():
            raise ApiError("not_found", f"there is no gateway in {folder}; name its folder with --data-dir")
        return sqlite_url(folder)

    def _exit_with(self, error: ApiError) -> None:
        print(f"{self.name}: {' '.join(error.message.split())}", file=sys.stderr)
        raise SystemExit(configuration.exit_status(error))


class StoreCommand(Command):
    """A subcommand that works on the gateway's store."""

    aliases: ClassVar[dict[str, Any]] = {
        **Command.aliases,
        "data-dir": "GatewayApp.data_dir",
        "database-url": "GatewayApp.database_url",
        "database-url-file": "GatewayApp.database_url_file",
    }

    @contextlib.asynccontextmanager
    async def store(self, make: bool = False) -> AsyncIterator[Store]:
        """The gateway's store, open inside. Raises ApiError when there is none; see `store_url`."""
        store = await Store.open(self.store_url(make))
        try:
            yield store
        finally:
            await store.close()


def moment(seconds: float | None) -> str | None:
    """A time as people and programs read it, in UTC."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def print_table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their longest cell."""
    rows = [head, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
