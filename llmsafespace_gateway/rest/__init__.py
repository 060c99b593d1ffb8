"""The REST API under /api/v1, its websocket, and the health and metrics endpoints."""

from llmsafespace_gateway.rest.table import API, pool_spec, restore_pools, routes

__all__ = ["API", "pool_spec", "restore_pools", "routes"]
