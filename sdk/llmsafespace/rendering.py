"""How results look in a notebook.

A sandbox's output is not trusted, and a notebook runs what it displays: HTML therefore goes into a frame
that may not reach the page around it, SVG into an image, and scripts nowhere.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any

_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_FRAME = "width:100%;min-height:8em;height:24em;border:0;resize:vertical;overflow:auto;background:#fff"
_PRE = "white-space:pre-wrap;margin:0"


def preformatted(text: str, *, error: bool = False) -> str:
    """Text as a block; `error` gives it the colour of errors."""
    style = f"{_PRE};color:#b00020" if error else _PRE
    return f'<pre style="{style}">{html.escape(text)}</pre>'


def result_html(bundle: Mapping[str, Any], fallback: str) -> str:
    """The safest rich form of a mimebundle, as HTML."""
    if "text/html" in bundle:
        return (
            f'<iframe sandbox="" referrerpolicy="no-referrer" style="{_FRAME}" '
            f'srcdoc="{html.escape(_joined(bundle["text/html"]))}"></iframe>'
        )
    for mime in _IMAGES:
        if mime in bundle:
            return f'<img src="data:{mime};base64,{html.escape(_joined(bundle[mime]).replace(chr(10), ""))}">'
    if "image/svg+xml" in bundle:
        data = base64.b64encode(_joined(bundle["image/svg+xml"]).encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{data}">'
    return preformatted(fallback)


def result_bundle(bundle: Mapping[str, Any], fallback: str) -> dict[str, Any]:
    """A mimebundle that is safe to display in a trusted notebook."""
    safe = {mime: bundle[mime] for mime in ("image/png", "image/jpeg") if mime in bundle}
    if "text/html" in bundle or "image/svg+xml" in bundle:
        safe["text/html"] = result_html(bundle, fallback)
    return {"text/plain": fallback, **safe}


def _joined(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value)
