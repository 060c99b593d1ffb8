"""Routes: runtimes and profiles."""

from __future__ import annotations

from llmsafespace_gateway.rest.conversions import resources_answer
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Routes
from llmsafespace_gateway.rest.types_admin import ProfileAnswer, ProfileList, RuntimeAnswer, RuntimeList
from llmsafespace_gateway.services.types import Profile, Runtime

ROUTES = Routes("Runtimes")


@ROUTES("GET", "/runtimes")
async def list_runtimes(call: RestHandler) -> RuntimeList:
    """Runtimes that sandboxes can have."""
    return RuntimeList(items=[_runtime_answer(runtime) for runtime in await call.services.runtimes.all()])


@ROUTES("GET", "/runtimes/{runtime_id}", errors=(404,))
async def get_runtime(call: RestHandler) -> RuntimeAnswer:
    """A runtime."""
    return _runtime_answer(await call.services.runtimes.find(call.path_values["runtime_id"]))


@ROUTES("GET", "/profiles")
async def list_profiles(call: RestHandler) -> ProfileList:
    """What the security levels mean."""
    return ProfileList(items=[_profile_answer(each) for each in await call.services.runtimes.profiles()])


@ROUTES("GET", "/profiles/{profile_id}", errors=(404,))
async def get_profile(call: RestHandler) -> ProfileAnswer:
    """What a security level means."""
    return _profile_answer(await call.services.runtimes.profile(call.path_values["profile_id"]))


def _runtime_answer(runtime: Runtime) -> RuntimeAnswer:
    return RuntimeAnswer(
        id=runtime.id,
        language=runtime.language,
        version=runtime.version,
        display_name=runtime.display_name,
        languages=list(runtime.languages),
        pre_installed_packages=list(runtime.packages),
        available=runtime.available,
        reason=runtime.reason,
    )


def _profile_answer(profile: Profile) -> ProfileAnswer:
    defaults = profile.resource_defaults
    return ProfileAnswer(
        id=profile.name,
        security_level=profile.security_level,
        description=profile.description,
        resource_defaults=resources_answer(defaults.cpu, defaults.memory, defaults.storage),
        measures=list(profile.measures),
        writable_paths=list(profile.writable_paths),
        network=profile.network,
    )
