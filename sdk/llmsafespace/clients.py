"""Clients of the gateway, one per event loop and endpoint while somebody holds it; and embedded mode."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from llmsafespace import embedded
from llmsafespace.settings import Endpoint, explicit_endpoint, require_gateway_package
from llmsafespace.transport import Transport


class Client:
    """A shared Transport: what each holder closes is its hold; the last one closes the connections."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.holders = 0

    async def close(self) -> None:
        """Give up one hold."""
        self.holders -= 1
        if self.holders == 0:
            _of_this_loop().pop(self.transport.endpoint, None)
            await self.transport.close()


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Endpoint, Client]] = WeakKeyDictionary()


def _of_this_loop() -> dict[Endpoint, Client]:
    return _clients.setdefault(asyncio.get_running_loop(), {})


async def client_for(api_url: str | None, api_key: str | None) -> Client:
    """A hold on the client for these arguments, the environment, or a private gateway of this process."""
    endpoint = explicit_endpoint(api_url, api_key)
    if endpoint is None:
        require_gateway_package()
        endpoint = await asyncio.to_thread(embedded.endpoint)
    clients = _of_this_loop()
    client = clients.get(endpoint)
    if client is None:
        client = clients[endpoint] = Client(Transport(endpoint))
    client.holders += 1
    return client
