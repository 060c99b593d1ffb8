"""A sandbox's contexts: its kernels, each with variables of its own."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping
from typing import Any

from llmsafespace import models, requests, values
from llmsafespace.errors import InvalidRequest, NotFound
from llmsafespace.models import Context
from llmsafespace.transport import API, Transport, segment

ContextLike = Context | str
ContextList = list[Context]
_ID = re.compile(r"[\w.:@-]{1,128}", re.ASCII)


def id_of(context: ContextLike) -> str:
    """The id of a context, or the id itself. Raises InvalidRequest for what is neither."""
    given = context.id if isinstance(context, Context) else context
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise InvalidRequest(f"context must be a Context or the id of one, got {given!r:.80}")
    return str.__str__(given)


class AsyncContexts:
    """Make, list, restart and remove a sandbox's contexts."""

    def __init__(self, transport: Transport, sandbox_id: str, default_id: str | None = None) -> None:
        self._transport = transport
        self._path = f"{API}/sandboxes/{segment(sandbox_id)}/contexts"
        self._default_id = default_id
        self._by_language: dict[str, Context] = {}
        self._lock = asyncio.Lock()

    async def create(
        self,
        language: str | None = None,
        *,
        name: str = "",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Context:
        """A further context. Without a language it has the sandbox's own."""
        body: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "name": values.plain(name, "name"),
            "env": values.environment(env),
        }
        if language is not None:
            body["language"] = requests.language(values.plain(language, "language"))
        if cwd is not None:
            body["cwd"] = values.path(cwd, "cwd")
        return models.context(await self._transport.request("POST", self._path, body=body, repeatable=True))

    async def list(self) -> ContextList:
        """All contexts, the default one first."""
        document = await self._transport.request("GET", self._path)
        return [models.context(item) for item in document["items"]]

    async def restart(self, context: ContextLike | None = None) -> Context:
        """Restart a context (the default one): its variables are gone, its files stay.

        When the connection breaks before the answer it is asked for again: the kernel may restart twice.
        """
        target = await self.default_id() if context is None else id_of(context)
        path = f"{self._path}/{segment(target)}/restart"
        return models.context(await self._transport.request("POST", path, repeatable=True))

    async def remove(self, context: ContextLike) -> bool:
        """End a context; False when there was none."""
        target = id_of(context)
        self._by_language = {k: c for k, c in self._by_language.items() if c.id != target}
        try:
            await self._transport.request("DELETE", f"{self._path}/{segment(target)}")
        except NotFound:
            return False
        return True

    async def default_id(self) -> str:
        """The id of the context that code runs in when none is named."""
        if self._default_id is None:
            contexts = await self.list()
            if not contexts:
                raise NotFound(
                    "the sandbox has no context; make one with contexts.create()", code="not_found"
                )
            self._default_id = next((one for one in contexts if one.is_default), contexts[0]).id
        return self._default_id

    async def of_language(self, language: str) -> Context:
        """The context for code in this language; made when there is none yet."""
        async with self._lock:
            known = self._by_language.get(language)
            if known is None:
                others = (context for context in await self.list() if context.language == language)
                known = next(others, None) or await self.create(language, name=language)
                self._by_language[language] = known
            return known
