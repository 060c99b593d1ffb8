"""What an execution leaves: results, logs, the error, and how it ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmsafespace import rendering
from llmsafespace.decoding import BadMessage, decode_json
from llmsafespace.errors import SandboxError

ENDS = ("ok", "error", "aborted", "timeout", "interrupted", "oom", "kernel_died", "expired")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Result:
    """One rich result: a mimebundle, with its usual formats as attributes (None when it lacks one).

    `png`, `jpeg` and `pdf` are base64 text, as in a notebook. The bundle comes from code that is not
    trusted: when a notebook shows a Result, its HTML and SVG stay in a sandboxed frame.
    """

    raw: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    is_main_result: bool = False
    display_id: str | None = None

    @classmethod
    def from_content(cls, content: Mapping[str, Any], *, is_main_result: bool = False) -> Result:
        """The result in the content of an execute_result, display_data or update_display_data."""
        display_id = _mapping(content.get("transient")).get("display_id")
        return cls(
            _mapping(content.get("data")),
            _mapping(content.get("metadata")),
            is_main_result,
            display_id if isinstance(display_id, str) else None,
        )

    @property
    def text(self) -> str | None:
        """text/plain."""
        return self._string("text/plain")

    @property
    def html(self) -> str | None:
        """text/html."""
        return self._string("text/html")

    @property
    def markdown(self) -> str | None:
        """text/markdown."""
        return self._string("text/markdown")

    @property
    def svg(self) -> str | None:
        """image/svg+xml."""
        return self._string("image/svg+xml")

    @property
    def png(self) -> str | None:
        """image/png, base64."""
        return self._string("image/png")

    @property
    def jpeg(self) -> str | None:
        """image/jpeg, base64."""
        return self._string("image/jpeg")

    @property
    def pdf(self) -> str | None:
        """application/pdf, base64."""
        return self._string("application/pdf")

    @property
    def latex(self) -> str | None:
        """text/latex."""
        return self._string("text/latex")

    @property
    def json(self) -> Any:
        """application/json, decoded."""
        value = self.raw.get("application/json")
        if isinstance(value, str):
            try:
                return decode_json(value)
            except BadMessage:
                return value
        return value

    @property
    def javascript(self) -> str | None:
        """application/javascript."""
        return self._string("application/javascript")

    def formats(self) -> list[str]:
        """The short names of the formats that it has; other MIME types by their own name."""
        return [_SHORT.get(mime, mime) for mime in self.raw]

    def _string(self, mime: str) -> str | None:
        value = self.raw.get(mime)
        if isinstance(value, list):
            return "".join(str(piece) for piece in value)
        return value if value is None or isinstance(value, str) else str(value)

    def __str__(self) -> str:
        return self.text or f"Result({', '.join(self.formats())})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return rendering.result_bundle(self.raw, str(self))


def _mapping(value: object) -> dict[str, Any]:
    """A copy of a mapping; empty for anything else that a kernel may send in its place."""
    return dict(value) if isinstance(value, Mapping) else {}


_SHORT = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}


@dataclass
class ExecutionError:
    """What the code raised, or why it was ended. `traceback` is text with terminal colours."""

    name: str = "Error"
    value: str = ""
    traceback: str = ""

    @classmethod
    def from_content(cls, content: Mapping[str, Any], default_name: str = "Error") -> ExecutionError:
        """The error in the content of an `error` message or an execute_reply."""
        lines = content.get("traceback") or []
        text = "\n".join(str(line) for line in lines) if isinstance(lines, list) else str(lines)
        return cls(str(content.get("ename") or default_name), str(content.get("evalue") or ""), text)

    @property
    def plain_traceback(self) -> str:
        """The traceback without colours; `name: value` where there is none."""
        return _ANSI.sub("", self.traceback) or str(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.value}" if self.value else self.name

    def _repr_html_(self) -> str:
        return rendering.preformatted(self.plain_traceback, error=True)


@dataclass
class Logs:
    """The pieces of output in the order they came."""

    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "".join(self.stdout) + "".join(self.stderr)


@dataclass
class Execution:
    """One run of code: what it printed, showed and raised, and how it ended.

    `end` is "ok", "error", "aborted", "timeout", "interrupted", "oom", "kernel_died" or "expired";
    `execution_time` is in seconds, as seen from here. `missed` counts messages lost to the sandbox's
    output quota (0 unless a program writes more than the journal holds). `comms` has the messages of widgets
    and other comms (events.Comm), with their buffers.
    """

    id: str
    end: str = "ok"
    results: list[Result] = field(default_factory=list)
    logs: Logs = field(default_factory=Logs)
    error: ExecutionError | None = None
    execution_count: int | None = None
    execution_time: float = 0.0
    missed: int = 0
    comms: list[Any] = field(default_factory=list)  # events.Comm, which this module is below

    @property
    def stdout(self) -> str:
        """Everything printed on standard output."""
        return "".join(self.logs.stdout)

    @property
    def stderr(self) -> str:
        """Everything on standard error, and the traceback where the code raised."""
        text = "".join(self.logs.stderr)
        if self.error is None:
            return text
        gap = "\n" if text and not text.endswith("\n") else ""
        return f"{text}{gap}{self.error.plain_traceback}"

    @property
    def exit_code(self) -> int:
        """0 when the code ended well, 1 otherwise."""
        return 0 if self.end == "ok" else 1

    @property
    def success(self) -> bool:
        """True when the code ended well."""
        return self.end == "ok"

    @property
    def text(self) -> str | None:
        """The text of the main result (the value of the last line), None when there is none."""
        return next((result.text for result in reversed(self.results) if result.is_main_result), None)

    def raise_for_error(self) -> Execution:
        """Itself when the code ended well. Raises ExecutionFailed otherwise."""
        if not self.success:
            raise ExecutionFailed(self)
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": self._plain(), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        blocks = [rendering.preformatted(self.stdout)] if self.stdout else []
        if self.logs.stderr:
            blocks.append(rendering.preformatted("".join(self.logs.stderr), error=True))
        blocks += [rendering.result_html(result.raw, str(result)) for result in self.results]
        if self.error is not None:
            blocks.append(self.error._repr_html_())
        return "\n".join(blocks) or rendering.preformatted(f"({self.end})")

    def _plain(self) -> str:
        results = "\n".join(str(result) for result in self.results)
        return "\n".join(part for part in (self.stdout, results, self.stderr) if part) or f"({self.end})"


class ExecutionFailed(SandboxError):
    """Raised by Execution.raise_for_error; `execution` is the one that failed."""

    def __init__(self, execution: Execution) -> None:
        message = f"the execution ended with {execution.end!r}: {execution.error}"
        super().__init__(message, code="execution_failed", details={"end": execution.end})
        self.execution = execution
