"""The REST API under /api/v1, its websocket, and the health and metrics endpoints."""

from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Router
from llmsafespace_gateway.rest.table import API, drain, pool_spec, prepare, routes

__all__ = ["API", "RestHandler", "Router", "drain", "pool_spec", "prepare", "routes"]
