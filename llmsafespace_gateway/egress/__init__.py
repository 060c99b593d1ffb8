"""The only way out of a sandbox: an allow-listing proxy."""

from llmsafespace_gateway.egress.proxy import Decision, EgressProxy
from llmsafespace_gateway.egress.rules import Rule, index_rules

__all__ = ["Decision", "EgressProxy", "Rule", "index_rules"]
