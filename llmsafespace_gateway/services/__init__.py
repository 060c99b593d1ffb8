"""Use cases: what people can do here, whatever door they come through. See `base`."""

from __future__ import annotations

from llmsafespace_gateway.services.base import Caller, Parts, Service

__all__ = ["Caller", "Parts", "Service", "Services"]


class Services:
    """One service per subject; `settings["services"]` of the web application."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
