"""What probes and Prometheus ask the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from tornado.web import Application, RequestHandler

from llmsafespace_kube.api.informer import Informer

SILENCE = 90.0  # seconds after which a watch counts as dead


class Health(RequestHandler):
    """200 while every watch was heard within SILENCE. When the event loop is stuck, nobody answers."""

    def initialize(self, informers: dict[str, Informer[Any]]) -> None:
        """See RequestHandler."""
        self._informers = informers

    def get(self) -> None:
        """503 names the watches that are silent."""
        silent = [name for name, informer in self._informers.items() if informer.silent_for > SILENCE]
        if silent:
            self.set_status(503)
            self.finish(f"nothing was heard for {SILENCE:g} s of {', '.join(silent)}\n")
        else:
            self.finish("ok\n")


class Ready(RequestHandler):
    """200 once everything has been listed, in leader and standby alike."""

    def initialize(self, ready: Callable[[], bool]) -> None:
        """See RequestHandler."""
        self._ready = ready

    def get(self) -> None:
        """503 before that."""
        if self._ready():
            self.finish("ok\n")
        else:
            self.set_status(503)
            self.finish("the objects of the cluster are being listed\n")


class Metrics(RequestHandler):
    """For Prometheus."""

    def get(self) -> None:
        """Everything in the default registry."""
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest())


def application(informers: dict[str, Informer[Any]], ready: Callable[[], bool]) -> Application:
    """`/healthz`, `/readyz` and `/metrics`."""
    return Application(
        [
            ("/healthz", Health, {"informers": informers}),
            ("/readyz", Ready, {"ready": ready}),
            ("/metrics", Metrics),
        ],
        log_function=lambda _: None,
    )
