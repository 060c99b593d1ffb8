"""Whether a runtime is available: pure decisions from its spec and the pods that run its image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

import msgspec

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kubernetes import ContainerStatus, Pod
from llmsafespace_kube.resources.types import RuntimeEnvironment
from llmsafespace_operator.pods.ends import is_ready

_HOST = r"[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?"
_NAME = r"[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"({_HOST}/)?{_NAME}(/{_NAME})*(:(?P<tag>[\w][\w.-]{{0,127}}))?(@(?P<digest>sha256:[0-9a-f]{{64}}))?",
    re.ASCII,
)
UNUSABLE = "ImageUnusable"
MEMORY = 60.0  # seconds for which this verdict stays after the pods that it is based on are gone
_LANGUAGE = re.compile(r"[a-z][a-z+_-]*", re.ASCII)
# The kubelet's reasons for an image that cannot be pulled, and for a container that does not start.
_NO_IMAGE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "ImageInspectError",
    "InvalidImageName",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_NO_START = {"CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"}


class Verdict(msgspec.Struct, frozen=True):
    """Whether a runtime is available; `reason` is one CamelCase word, `message` is for people."""

    available: bool
    reason: str
    message: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """What a pod shows about its image: that it works, its trouble as text, or nothing yet."""

    image: str
    works: bool = False
    trouble: str = ""


def judge(environment: RuntimeEnvironment, pods: Iterable[Pod], now: datetime) -> Verdict:
    """Decide whether a runtime is available.

    It is not if its spec is invalid, or if pods cannot use its image and no pod can. That verdict stays for a
    minute after those pods are gone: otherwise a pool would create new pods of it at once, again and again.
    """
    spec = environment.spec
    invalid = _invalid(spec.language, spec.image)
    if invalid is not None:
        return invalid
    seen = [one for one in map(evidence, pods) if one.image == spec.image]
    if any(one.works for one in seen):
        return Verdict(True, "Valid")
    troubled = next((one.trouble for one in seen if one.trouble), "")
    if troubled:
        return Verdict(False, UNUSABLE, f"pods of the image {spec.image} do not start: {troubled}")
    before = _remembered(environment, now)
    return Verdict(False, UNUSABLE, before) if before else Verdict(True, "Valid")


def _remembered(environment: RuntimeEnvironment, now: datetime) -> str:
    """Return why this image could not be used less than MEMORY seconds ago; "" if it could."""
    for one in environment.status.conditions:
        same = one.reason == UNUSABLE and one.observed_generation == environment.metadata.generation
        since = one.last_transition_time
        if same and since is not None and (now - since).total_seconds() < MEMORY:
            return one.message
    return ""


def evidence(pod: Pod) -> Evidence:
    """Return what the pod shows about its image.

    A container that does not start counts only in pools: a Sandbox may have asked for settings with which no
    image starts, and must not make the runtime unavailable for others.
    """
    image = next((container.image for container in pod.spec.containers), "")
    words = _NO_IMAGE | _NO_START if names.POOL in pod.metadata.labels else _NO_IMAGE
    troubles = (_trouble(container, words) for container in pod.status.container_statuses)
    return Evidence(image, is_ready(pod), next((one for one in troubles if one), ""))


def allowed(environments: Iterable[RuntimeEnvironment]) -> list[str]:
    """Return the images that sandboxes' pods may run: those of all runtimes with a valid spec."""
    specs = (environment.spec for environment in environments)
    return sorted({spec.image for spec in specs if _invalid(spec.language, spec.image) is None})


def _invalid(language: str, image: str) -> Verdict | None:
    if not _LANGUAGE.fullmatch(language.lower()):
        return Verdict(False, "InvalidLanguage", f"{language!r} is not a valid language name")
    match = _IMAGE.fullmatch(image)
    if match is None:
        return Verdict(False, "InvalidImage", f"{image!r} is not a valid image reference")
    if match["digest"] is None and match["tag"] in (None, "latest"):
        words = f"the image {image} is not pinned: write a digest, or a tag other than latest"
        return Verdict(False, "ImageNotPinned", words)
    return None


def _trouble(container: ContainerStatus, words: set[str]) -> str:
    for state in (container.state.waiting, container.state.terminated):
        if state is not None and state.reason in words:
            return f"{state.reason}: {state.message}" if state.message else state.reason
    return ""
