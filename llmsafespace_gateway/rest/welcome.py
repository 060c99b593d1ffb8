"""`GET /`: what this is, for whoever opens the gateway's URL in a browser or asks it with curl."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import PREFIX, Route

_HTML = "text/html; charset=utf-8"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LLMSafeSpace</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 4rem auto; padding: 0 1rem;
  color-scheme: light dark }}
code, pre {{ font: 14px/1.5 ui-monospace, monospace }}
pre {{ overflow-x: auto; padding: 1rem; border: 1px solid #8884; border-radius: 6px }}
</style>
</head>
<body>
<h1>LLMSafeSpace</h1>
<p>This is a gateway to isolated sandboxes with real Jupyter kernels, version {version}. It runs, and
it answers requests that carry an API key.</p>
<ul>
<li><a href="api/v1/docs">The REST API</a>, described for people, and as
<a href="api/v1/openapi.json">OpenAPI</a></li>
<li>The Jupyter API under <code>/api</code>, for
<code>jupyter lab --gateway-url</code> and every other Jupyter client</li>
</ul>
<p>From Python, with the SDK <code>llmsafespace</code>:</p>
<pre>from llmsafespace import Sandbox

with Sandbox(api_url="{url}", api_key="lsp_…") as sandbox:
    print(sandbox.run_code("6 * 7").text)</pre>
<p>Whoever runs this gateway makes keys: <code>llmsafespace-gateway keys create</code>.</p>
</body>
</html>
"""


async def welcome(call: RestHandler) -> dict[str, Any] | None:
    """GET /: a page for browsers, JSON for anything else."""
    call.set_header("Vary", "Accept")
    if "text/html" not in call.request.headers.get("Accept", ""):
        return {
            "name": "LLMSafeSpace",
            "version": version("llmsafespace-gateway"),
            "docs": f"{PREFIX}/docs",
            "openapi": f"{PREFIX}/openapi.json",
            "jupyter": "/api",
        }
    call.set_header("Content-Type", _HTML)
    call.set_header("Content-Security-Policy", _POLICY)
    call.set_header("Referrer-Policy", "no-referrer")
    call.finish(_PAGE.format(version=version("llmsafespace-gateway"), url=_own_url(call)))
    return None


def _own_url(call: RestHandler) -> str:
    """The URL that was asked for, as far as it is a harmless text."""
    host = call.request.host
    known = bool(host) and all(letter.isalnum() or letter in ".-:[]" for letter in host)
    return f"{call.request.protocol}://{host if known else 'HOST'}"


ROUTE = Route(method="GET", path="/", handle=welcome, public=True, tag="About", summary="What this is")
