"""Listening, accepting, and the bounds of every connection: below all doors, knowing none of them."""

from llmsafespace_gateway.serving.limits import ServingLimits
from llmsafespace_gateway.serving.origins import AllowedOrigins
from llmsafespace_gateway.serving.proxies import TrustedProxies
from llmsafespace_gateway.serving.server import Server
from llmsafespace_gateway.serving.sockets import listen_tcp, listen_unix
from llmsafespace_gateway.serving.tls import Certificate

__all__ = [
    "AllowedOrigins",
    "Certificate",
    "Server",
    "ServingLimits",
    "TrustedProxies",
    "listen_tcp",
    "listen_unix",
]
