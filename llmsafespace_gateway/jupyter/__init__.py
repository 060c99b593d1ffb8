"""The standard Jupyter API: kernels, kernelspecs, sessions, channels."""

from __future__ import annotations

from typing import Any

from llmsafespace_gateway.jupyter.channels import ChannelsHandler
from llmsafespace_gateway.jupyter.kernels import KernelAction, KernelItem, KernelList
from llmsafespace_gateway.jupyter.service import (
    KernelSpecItem,
    KernelSpecList,
    KernelSpecResource,
    Me,
    Status,
    Version,
)
from llmsafespace_gateway.jupyter.sessions import SessionItem, SessionList
from llmsafespace_gateway.services.channels import drain

__all__ = ["drain", "routes"]

_ID = r"(?P<{}>\w+-\w+-\w+-\w+-\w+)"
_KERNEL = _ID.format("kernel_id")
_NAME = r"(?P<name>[\w.\-%]+)"


def routes() -> list[tuple[str, Any]]:
    """The rules for tornado's Application."""
    return [
        (r"/api/?", Version),
        (r"/api/me", Me),
        (r"/api/status", Status),
        (r"/api/kernelspecs", KernelSpecList),
        (rf"/api/kernelspecs/{_NAME}", KernelSpecItem),
        (rf"/kernelspecs/{_NAME}/(?P<file>[^/]+)", KernelSpecResource),
        (r"/api/kernels", KernelList),
        (rf"/api/kernels/{_KERNEL}", KernelItem),
        (rf"/api/kernels/{_KERNEL}/(?P<action>interrupt|restart)", KernelAction),
        (rf"/api/kernels/{_KERNEL}/channels", ChannelsHandler),
        (r"/api/sessions", SessionList),
        (rf"/api/sessions/{_ID.format('session_id')}", SessionItem),
    ]
