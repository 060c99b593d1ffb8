"""As what a warm pod was made: its pool may have changed since."""

from __future__ import annotations

import msgspec

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.types import WarmPodStatus

MADE_AS = f"{names.GROUP}/made-as"  # annotation of a warm pod: the part of its WarmPod's status that is known


def made_as(pod: Pod) -> WarmPodStatus:
    """What was known of a warm pod when it was made; nothing when somebody else made it."""
    try:
        return msgspec.json.decode(pod.metadata.annotations.get(MADE_AS, "{}"), type=WarmPodStatus)
    except msgspec.MsgspecError:
        return WarmPodStatus()
