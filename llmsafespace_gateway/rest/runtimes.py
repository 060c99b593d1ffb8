"""Routes: runtimes and profiles."""

from __future__ import annotations

from llmsafespace_gateway.rest.conversions import resources_answer
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Route
from llmsafespace_gateway.rest.types_admin import ProfileAnswer, ProfileList, RuntimeAnswer, RuntimeList
from llmsafespace_gateway.services.types import Profile, Runtime


async def list_runtimes(call: RestHandler) -> RuntimeList:
    """GET /runtimes."""
    return RuntimeList(items=[_runtime_answer(runtime) for runtime in await call.services.runtimes.all()])


async def get_runtime(call: RestHandler) -> RuntimeAnswer:
    """GET /runtimes/{runtime_id}."""
    return _runtime_answer(await call.services.runtimes.find(call.path_values["runtime_id"]))


async def list_profiles(call: RestHandler) -> ProfileList:
    """GET /profiles."""
    return ProfileList(items=[_profile_answer(each) for each in await call.services.runtimes.profiles()])


async def get_profile(call: RestHandler) -> ProfileAnswer:
    """GET /profiles/{profile_id}."""
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


ROUTES = [
    Route(
        method="GET",
        path="/runtimes",
        handle=list_runtimes,
        tag="Runtimes",
        summary="Runtimes that sandboxes can have",
        response=RuntimeList,
    ),
    Route(
        method="GET",
        path="/runtimes/{runtime_id}",
        handle=get_runtime,
        tag="Runtimes",
        summary="A runtime",
        response=RuntimeAnswer,
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/profiles",
        handle=list_profiles,
        tag="Runtimes",
        summary="What the security levels mean",
        response=ProfileList,
    ),
    Route(
        method="GET",
        path="/profiles/{profile_id}",
        handle=get_profile,
        tag="Runtimes",
        summary="What a security level means",
        response=ProfileAnswer,
        errors=(404,),
    ),
]
