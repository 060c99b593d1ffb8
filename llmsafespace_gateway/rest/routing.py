"""What a route is. One list of routes registers the handlers and makes the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_type_hints
from urllib.parse import unquote_to_bytes

import msgspec

from llmsafespace_gateway.errors import ApiError

PREFIX = "/api/v1"
JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
BYTES = "application/octet-stream"

# Takes the RestHandler, and where the route says `on` the loaded object after it.
Handle = Callable[..., Awaitable[Any]]
_Handle = TypeVar("_Handle", bound=Handle)


class Query(msgspec.Struct, frozen=True):
    """One query value of a route; `of` is its type."""

    name: str
    description: str
    of: Literal["string", "integer", "boolean"] = "string"
    default: Any = None
    minimum: int = 0
    maximum: int = 2**63 - 1
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """The value of `text`. Raises ApiError(invalid_request), naming the query value."""
        if self.of == "boolean":
            if text.lower() not in ("true", "false", "1", "0"):
                raise self._wrong("true or false", text)
            return text.lower() in ("true", "1")
        if self.of == "integer":
            if not re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII):
                raise self._wrong("an integer", text)
            if not self.minimum <= int(text) <= self.maximum:
                raise self._wrong(f"an integer from {self.minimum} to {self.maximum}", text)
            return int(text)
        if self.choices and text not in self.choices:
            raise self._wrong("one of " + ", ".join(self.choices), text)
        if len(text) > 4096 or "\0" in text:
            raise self._wrong("at most 4096 characters, none of them NUL", text)
        return text

    def _wrong(self, expected: str, text: str) -> ApiError:
        return ApiError(
            "invalid_request",
            f"query.{self.name}: expected {expected}, got {text[:60]!r}",
            {"field": f"query.{self.name}"},
        )


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the API.

    `action` is what the audit log calls a refusal, where that is not method and path. `scope` None needs a
    key but no particular scope. With `on` the handler gets the sandbox that the path names, on which the
    caller may use `scope`. `public` needs no key. `probe` is asked every few seconds by machines: not
    worth a line in the log. `upload` takes a body of any size and type, handed on piece by piece to what
    `begin` answers. `path` has `{name}` for one segment and `{path}` for the rest.
    """

    method: str
    path: str
    handle: Handle
    summary: str
    tag: str
    action: str = ""
    scope: str | None = None
    on: Literal["sandbox"] | None = None
    public: bool = False
    probe: bool = False
    request: Any = None
    request_optional: bool = False
    response: Any = None
    status: int = 200
    produces: tuple[str, ...] = (JSON,)
    events: Any = None  # what each line is where NDJSON is produced; None: an event of an execution
    query: tuple[Query, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    upload: bool = False
    begin: Handle | None = None
    max_body: int = 1024 * 1024
    errors: tuple[int, ...] = ()

    @property
    def parameters(self) -> list[str]:
        """The names in the path, in order."""
        return re.findall(r"{(\w+)}", self.path)


class Routes(list[Route]):
    """The routes of one subject: `@ROUTES("GET", "/path", scope=…)` above a handler declares one.

    The API's description says of it the first paragraph of the handler's docstring, and the type that the
    handler returns (`T | None` where it may have answered already).
    """

    def __init__(self, tag: str, on: Literal["sandbox"] | None = None) -> None:
        super().__init__()
        self._common = {"tag": tag, "on": on}

    def __call__(self, method: str, path: str, **more: Any) -> Callable[[_Handle], _Handle]:
        """Declare a route; `more` are the fields of Route."""

        def declare(handle: _Handle) -> _Handle:
            said = " ".join((handle.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")
            answer = get_type_hints(handle)["return"]
            kinds = get_args(answer) if isinstance(answer, UnionType) else (answer,)
            response = next((kind for kind in kinds if kind is not NoneType), None)
            fields = {"summary": said, "response": response, **self._common, **more}
            self.append(Route(method=method, path=path, handle=handle, **fields))
            return handle

        return declare


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route], unlisted: Iterable[Route] = ()) -> None:
        self.listed = tuple(routes)  # what the API's description tells of
        self._routes = [(re.compile(_pattern(route.path)), route) for route in (*self.listed, *unlisted)]

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route of a request for `path` (still percent-encoded, without PREFIX) and its path values.

        HEAD is served by GET's route. Raises ApiError: not_found, method_not_allowed with `details.allowed`,
        invalid_request when the path is not UTF-8.
        """
        wanted = "GET" if method == "HEAD" else method
        allowed: list[str] = []
        for pattern, route in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == wanted:
                return route, {name: _decode(value) for name, value in match.groupdict().items()}
            allowed.append(route.method)
        if not allowed:
            raise ApiError(
                "not_found", f"no such path; {PREFIX}/docs lists those that are there", {"path": path[:200]}
            )
        raise ApiError(
            "method_not_allowed",
            f"{method} is not possible here; allowed: {', '.join(sorted(set(allowed)))}",
            {"allowed": sorted(set(allowed))},
        )


def _pattern(path: str) -> str:
    return re.sub(
        r"{(\w+)}", lambda found: f"(?P<{found[1]}>{'.+' if found[1] == 'path' else '[^/]+'})", path
    )


def _decode(value: str) -> str:
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError as error:
        raise ApiError("invalid_request", "path: expected UTF-8 under the percent-encoding") from error
    if "\0" in text:
        raise ApiError("invalid_request", "path: a NUL cannot be part of a name")
    return text
