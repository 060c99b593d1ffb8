"""Whether a runtime can be had: pure decisions about its image and its pods."""

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
MEMORY = 60.0  # seconds that this verdict outlives the pods that it is based on
_LANGUAGE = re.compile(r"[a-z][a-z+_-]*", re.ASCII)
# What the kubelet calls it when an image is not to be had, and when what is in it does not start.
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
    """Whether a runtime is available: a CamelCase word, and a sentence for people."""

    available: bool
    reason: str
    message: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """What a pod says about its image: `trouble` in words, or that it works, or nothing yet."""

    image: str
    works: bool = False
    trouble: str = ""


def judge(environment: RuntimeEnvironment, pods: Iterable[Pod], now: datetime) -> Verdict:
    """Available unless its own words forbid it, or its pods cannot use the image and none can.

    When those pods are gone, that stands for a while: a pool would make new ones at once, of this runtime
    and of the one that takes its place in turn.
    """
    spec = environment.spec
    wrong = _wrong(spec.language, spec.image)
    if wrong is not None:
        return wrong
    seen = [one for one in map(evidence, pods) if one.image == spec.image]
    if any(one.works for one in seen):
        return Verdict(True, "Valid")
    troubled = next((one.trouble for one in seen if one.trouble), "")
    if troubled:
        return Verdict(False, UNUSABLE, f"pods of the image {spec.image} do not start: {troubled}")
    before = _remembered(environment, now)
    return Verdict(False, UNUSABLE, before) if before else Verdict(True, "Valid")


def _remembered(environment: RuntimeEnvironment, now: datetime) -> str:
    """Why this image could not be used less than MEMORY ago; empty when it could."""
    for one in environment.status.conditions:
        same = one.reason == UNUSABLE and one.observed_generation == environment.metadata.generation
        since = one.last_transition_time
        if same and since is not None and (now - since).total_seconds() < MEMORY:
            return one.message
    return ""


def evidence(pod: Pod) -> Evidence:
    """What the pod says about its image.

    That nothing starts in it counts in pools only: a Sandbox can ask for what no image starts with, and
    must not take the runtime from others by that.
    """
    image = next((container.image for container in pod.spec.containers), "")
    words = _NO_IMAGE | _NO_START if names.POOL in pod.metadata.labels else _NO_IMAGE
    troubles = (_trouble(container, words) for container in pod.status.container_statuses)
    return Evidence(image, is_ready(pod), next((one for one in troubles if one), ""))


def allowed(environments: Iterable[RuntimeEnvironment]) -> list[str]:
    """The images that sandboxes' pods may run."""
    specs = (environment.spec for environment in environments)
    return sorted({spec.image for spec in specs if _wrong(spec.language, spec.image) is None})


def _wrong(language: str, image: str) -> Verdict | None:
    if not _LANGUAGE.fullmatch(language.lower()):
        return Verdict(False, "InvalidLanguage", f"{language!r} is no language that a Sandbox can name")
    match = _IMAGE.fullmatch(image)
    if match is None:
        return Verdict(False, "InvalidImage", f"{image!r} is no image reference")
    if match["digest"] is None and match["tag"] in (None, "latest"):
        words = f"the image {image} changes under its name: write a digest, or a tag other than latest"
        return Verdict(False, "ImageNotPinned", words)
    return None


def _trouble(container: ContainerStatus, words: set[str]) -> str:
    for state in (container.state.waiting, container.state.terminated):
        if state is not None and state.reason in words:
            return f"{state.reason}: {state.message}" if state.message else state.reason
    return ""
