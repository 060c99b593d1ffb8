"""Text that UTF-8 cannot say, as Python code may print it: made sayable instead of refused."""

from __future__ import annotations

import codecs
import re

_PLAIN, _IN_JSON = "llmsafespace.plain", "llmsafespace.json"
_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def encodable(text: str, *, json: bool = False) -> str:
    r"""`text` without surrogates; most texts are returned as they are.

    Surrogates in pairs become the character that they mean, those of `surrogateescape` the character whose
    bytes they stand for. Every other is spelt with a backslash (`\ud83d`), twice where `text` is JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        backslash, handler = ("\\\\", _IN_JSON) if json else ("\\", _PLAIN)
        paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        spelt = _LONE.sub(lambda found: f"{backslash}u{ord(found.group()):04x}", paired)
        return spelt.encode("utf-8", "surrogateescape").decode("utf-8", handler)
    return text


def _spell(backslash: str, error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(f"{backslash}udc{byte:02x}" for byte in bad), error.end


codecs.register_error(_PLAIN, lambda error: _spell("\\", error))
codecs.register_error(_IN_JSON, lambda error: _spell("\\\\", error))
