"""Authentication of tornado handlers: settings["access"] decides, the request carries the principal."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.access.rates import RateLimited
from llmsafespace_gateway.errors import ApiError

if TYPE_CHECKING:
    from llmsafespace_gateway.access.service import Access


class AuthenticatedHandler(RequestHandler):
    """A handler, or the first base of a websocket handler, that runs only for an authenticated principal.

    `prepare` raises ApiError (unauthorized, rate_limited), which the handler's write_error turns into its
    API's shape. The headers that belong to the decision survive the error answer.
    """

    principal: Principal

    def set_default_headers(self) -> None:
        """Keep the headers of `prepare`: tornado drops the others when it sends an error."""
        super().set_default_headers()
        for name, value in getattr(self, "_access_headers", {}).items():
            self.set_header(name, value)

    async def prepare(self) -> None:
        """Authenticate, count the request, and set `self.principal`."""
        before = super().prepare()
        if inspect.isawaitable(before):
            await before
        if not self._finished:
            self.principal = await identify(self)


async def identify(handler: RequestHandler) -> Principal:
    """The principal of a handler's request; its headers are set on the handler. Raises ApiError."""
    access: Access = handler.settings["access"]
    request = handler.request
    try:
        principal = await access.authenticate(
            request.headers.get("Authorization"), _query_token(handler), request.remote_ip or ""
        )
        handler.identified = principal  # type: ignore[attr-defined]  # also where it is refused now
        _keep_headers(handler, access.rate_limit(principal))
    except ApiError as refusal:
        error = _token_refused() if _ignores_token(handler) and refusal.code == "unauthorized" else refusal
        _keep_headers(handler, _refusal_headers(error))
        raise error from None
    return principal


def is_websocket_upgrade(handler: RequestHandler) -> bool:
    """True for the request that opens a websocket (RFC 6455, 4.1), on a path where there is one.

    An Upgrade header alone is no handshake: on any other path, or without the rest, it changes nothing.
    """
    headers = handler.request.headers
    connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    return (
        isinstance(handler, WebSocketHandler)
        and handler.request.method == "GET"
        and headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in connection
        and bool(headers.get("Sec-WebSocket-Key"))
        and bool(headers.get("Sec-WebSocket-Version"))
    )


def _query_token(handler: RequestHandler) -> str | None:
    # Browsers cannot set headers on a websocket. Everywhere else a key in a URL ends up in logs: there it is
    # taken only where the operator says so.
    taken = is_websocket_upgrade(handler) or handler.settings.get("allow_token_in_url", False)
    return handler.get_query_argument("token", None) if taken else None


def _ignores_token(handler: RequestHandler) -> bool:
    """True when the request's only key is in its URL, where it is not taken."""
    sent = handler.get_query_argument("token", None) is not None
    return sent and _query_token(handler) is None and not handler.request.headers.get("Authorization")


def _token_refused() -> ApiError:
    return ApiError(
        "unauthorized",
        "?token= is not taken here, as URLs end up in logs and histories: send the key as "
        "`Authorization: Bearer <key>`. Who runs the gateway can allow it with --allow-token-in-url",
    )


def _refusal_headers(error: ApiError) -> dict[str, str]:
    headers = error.retry_headers
    if isinstance(error, RateLimited):
        headers.update(error.headers)
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = 'Bearer realm="llmsafespace"'
    return headers


def _keep_headers(handler: Any, headers: dict[str, str]) -> None:
    handler._access_headers = headers
    for name, value in headers.items():
        handler.set_header(name, value)
