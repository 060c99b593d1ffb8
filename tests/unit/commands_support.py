"""Running the gateway's own program in this process, which is much quicker than starting another."""

from __future__ import annotations

from traitlets.config import Application

from llmsafespace_gateway import app


def run(*arguments: str) -> int:
    """The exit status of `llmsafespace-gateway` with these arguments."""
    try:
        app.main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        if Application.initialized():
            type(Application.instance()).clear_instance()
    return 0
