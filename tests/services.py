"""Services as tests call them without a gateway."""

from __future__ import annotations

from typing import Any

from llmsafespace_gateway.access import Access, Principal
from llmsafespace_gateway.metrics import Metrics
from llmsafespace_gateway.services import Caller
from llmsafespace_gateway.services.base import Parts
from llmsafespace_gateway.services.people import PeopleService
from llmsafespace_gateway.store import Store


def people_of(access: Access, store: Store) -> PeopleService:
    """The service of people, which needs no sandboxes."""
    none: Any = None
    return PeopleService(Parts(access, none, store, none, Metrics(), "python"))


def rest(principal: Principal) -> Caller:
    """Somebody who comes over REST."""
    return Caller(principal, "rest")
