"""The properties with which a warm pod was created, in an annotation: its pool may have changed since."""

from __future__ import annotations

import msgspec

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.types import WarmPodStatus

MADE_AS = f"{names.GROUP}/made-as"  # annotation of a warm pod: a part of the later WarmPod status, as JSON


def made_as(pod: Pod) -> WarmPodStatus:
    """Return the properties with which a warm pod was created; empty if the operator did not create it."""
    try:
        return msgspec.json.decode(pod.metadata.annotations.get(MADE_AS, "{}"), type=WarmPodStatus)
    except msgspec.MsgspecError:
        return WarmPodStatus()
