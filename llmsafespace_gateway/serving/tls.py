"""The certificate that clients are shown, and its renewal while the gateway runs."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl

from llmsafespace_gateway.errors import ApiError

log = logging.getLogger("llmsafespace.serving")


class Certificate:
    """A certificate and its key in PEM. Raises ApiError with what to do when they cannot be used."""

    def __init__(self, certfile: str, keyfile: str = "") -> None:
        self._files = (certfile, keyfile or certfile)
        self._seen = self._state()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(self.context)

    def refresh(self) -> None:
        """Show the files' new content to new connections, when it changed; the old one stays if it is bad."""
        if (state := self._state()) == self._seen:
            return
        self._seen = state
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a failure half-way must not touch ours
            self._load(self.context)
        except ApiError as error:
            log.error("the renewed certificate is not used: %s", error.message)
        else:
            log.info("the certificate was renewed")

    def _state(self) -> tuple[object, ...]:
        found: list[object] = []
        for name in self._files:
            with contextlib.suppress(OSError):
                status = os.stat(name)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _load(self, context: ssl.SSLContext) -> None:
        certfile, keyfile = self._files
        for option, name in (("--certfile", certfile), ("--keyfile", keyfile)):
            try:
                with open(name, "rb"):
                    pass
            except OSError as error:
                raise ApiError("invalid_request", f"{option} {name}: {error.strerror}") from error
        try:
            context.load_cert_chain(certfile, keyfile, password=lambda: b"")  # never ask a terminal
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                text = f"the key in --keyfile {keyfile} does not belong to --certfile {certfile}"
            else:
                text = (
                    f"--certfile {certfile} and --keyfile {keyfile} must be a certificate and its key, "
                    f"without a password, in PEM ({error.reason or error})"
                )
            raise ApiError("invalid_request", text) from error
