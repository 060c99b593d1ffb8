"""Use cases: which runtimes and profiles exist."""

from __future__ import annotations

from llmsafespace_gateway.backends.base import Profile, Runtime
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services.base import Service


class RuntimeService(Service):
    """Everybody with a key may ask; nothing here changes anything."""

    async def all(self) -> list[Runtime]:
        """Every runtime, those that are not available with the reason."""
        return await self.backend.runtimes()

    async def find(self, runtime_id: str) -> Runtime:
        """A runtime. Raises ApiError(not_found)."""
        found = next((each for each in await self.all() if each.id == runtime_id), None)
        if found is None:
            raise ApiError(
                "not_found", f"there is no runtime {runtime_id[:128]!r}; GET /api/v1/runtimes lists them"
            )
        return found

    async def profiles(self) -> list[Profile]:
        """Every security level, with what it means here."""
        return await self.backend.profiles()

    async def profile(self, name: str) -> Profile:
        """A security level. Raises ApiError(not_found), which names the others."""
        known = await self.profiles()
        found = next((profile for profile in known if profile.name == name), None)
        if found is None:
            names = ", ".join(profile.name for profile in known)
            raise ApiError("not_found", f"there is no such profile; known are {names}")
        return found
