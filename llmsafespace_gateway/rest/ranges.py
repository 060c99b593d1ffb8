"""HTTP ranges and entity tags (RFC 9110, sections 13 and 14), as pure functions."""

from __future__ import annotations

import re

from llmsafespace_gateway.errors import ApiError

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,19})-(?P<last>[0-9]{0,19})")


def quoted(etag: str) -> str:
    """An entity tag as a header has it; anything that a header could not hold is left out."""
    return '"' + re.sub(r"[^\x21\x23-\x7e]", "", etag)[:200] + '"'


def matches(header: str | None, etag: str) -> bool:
    """Does If-Match or If-None-Match name this tag (or `*`)? Weak tags compare as strong ones do."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or quoted(etag) in tags or etag in tags


def if_match(header: str | None) -> str | None:
    """The one tag of an If-Match header, without its quotes; `*` as it is. Raises ApiError."""
    if header is None:
        return None
    tag = header.strip().removeprefix("W/")
    if "," in tag or not tag:
        raise ApiError(
            "invalid_request",
            "header.If-Match: expected one ETag, as a GET of the file answers it",
            {"field": "header.If-Match"},
        )
    return tag[1:-1] if len(tag) >= 2 and tag[0] == tag[-1] == '"' else tag


def resolve(header: str | None, size: int) -> tuple[int, int] | None:
    """(offset, length) of a single range, None for the whole file.

    A range in another unit, several ranges and what is no range are ignored, as the RFC allows.
    Raises ApiError(range_not_satisfiable) for one that begins beyond the end.
    """
    match = _RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        length = min(int(match["last"]), size)
        first, last = size - length, size - 1
    else:
        first = int(match["first"])
        last = min(int(match["last"]), size - 1) if match["last"] else size - 1
        if match["last"] and int(match["last"]) < first:
            return None
    if first >= size or last < first:
        raise ApiError("range_not_satisfiable", f"header.Range: the file has {size} bytes", {"size": size})
    return first, last - first + 1
