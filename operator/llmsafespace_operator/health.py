"""The operator's HTTP endpoints for probes and Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from tornado.web import Application, RequestHandler

from llmsafespace_kube.api.informer import Informer

SILENCE = 90.0  # seconds after which a watch counts as dead


class Health(RequestHandler):
    """Liveness: 200 if every watch has been heard within SILENCE seconds; otherwise 503."""

    def initialize(self, informers: dict[str, Informer[Any]]) -> None:
        """Take the informers by their names."""
        self._informers = informers

    def get(self) -> None:
        """Answer; a 503 names the silent watches."""
        silent = [name for name, informer in self._informers.items() if informer.silent_for > SILENCE]
        if silent:
            self.set_status(503)
            self.finish(f"no watch event for {SILENCE:g} s: {', '.join(silent)}\n")
        else:
            self.finish("ok\n")


class Ready(RequestHandler):
    """Readiness: 200 once all objects have been listed, in the leader and in standbys; before that 503."""

    def initialize(self, ready: Callable[[], bool]) -> None:
        """Take the function that says whether all objects have been listed."""
        self._ready = ready

    def get(self) -> None:
        """Answer 200 or 503."""
        if self._ready():
            self.finish("ok\n")
        else:
            self.set_status(503)
            self.finish("the objects of the cluster are being listed\n")


class Metrics(RequestHandler):
    """The metrics of this process, for Prometheus."""

    def get(self) -> None:
        """Answer with all metrics of the default registry."""
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest())


def application(informers: dict[str, Informer[Any]], ready: Callable[[], bool]) -> Application:
    """Make the application that serves `/healthz`, `/readyz` and `/metrics`."""
    return Application(
        [
            ("/healthz", Health, {"informers": informers}),
            ("/readyz", Ready, {"ready": ready}),
            ("/metrics", Metrics),
        ],
        log_function=lambda _: None,
    )
