"""Who may do what: identity, roles, ownership, quotas, rate limits, audit."""

from llmsafespace_gateway.access.decisions import message_allowed
from llmsafespace_gateway.access.principal import Principal, local_principal
from llmsafespace_gateway.access.quotas import Quota, Reservation
from llmsafespace_gateway.access.service import Access

__all__ = ["Access", "Principal", "Quota", "Reservation", "local_principal", "message_allowed"]
