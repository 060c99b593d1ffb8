"""The road from one process to the API server: as bad as it is told to be, and with ambushes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Literal

from aiohttp import web

from tests.cluster.faults import Faults, FaultyServer

_MEANWHILE = 0.3  # seconds in which what goes on beside a call comes to its end


class Ambush:
    """Death at one step of the work: of whoever first makes a call that matches "METHOD path body".

    `asked`: before the call reaches the API server. `meanwhile`: the same, but a little later, when what was
    begun at the same time is done. `done`: when it was carried out, but not answered.
    """

    def __init__(self, call: str, moment: Literal["asked", "meanwhile", "done"]) -> None:
        self.sprung = asyncio.Event()
        self.moment = moment
        self._call = re.compile(call)

    def awaits(self, call: str) -> bool:
        """Whether this is the call; says so once."""
        return not self.sprung.is_set() and self._call.search(call) is not None


class Road(FaultyServer):
    """A faulty API server for one process, which `kill` kills. The ambushes may be those of several roads."""

    def __init__(self, faults: Faults, kill: Callable[[], None], ambushes: Sequence[Ambush]) -> None:
        super().__init__(faults)
        self._kill = kill
        self._ambushes = ambushes

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = f"{request.method} {request.path} {(await request.read()).decode()}"
        ambush = next((each for each in self._ambushes if each.awaits(call)), None)
        if ambush is None:
            return await super()._serve(request)
        ambush.sprung.set()
        answer: web.StreamResponse = web.Response(status=502)
        if ambush.moment == "meanwhile":
            await asyncio.sleep(_MEANWHILE)
        elif ambush.moment == "done":
            answer = await super()._serve(request)
        self._kill()
        return answer
