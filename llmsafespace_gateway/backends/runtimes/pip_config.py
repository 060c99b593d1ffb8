"""The package index this machine is configured for, and the pip.conf that sandboxes get from it."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec

from llmsafespace_gateway.backends.runtimes.prepared import CA_FILE, PROXY

PYPI = "https://pypi.org/simple"
_LINE = re.compile(r"^(?P<section>[\w:-]+)\.(?P<key>[\w-]+)=(?P<value>.+)$")
_SECTIONS = ("global", "install", ":env:")  # the later wins, as in pip
_CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


class PipConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where packages come from. URLs carry no credentials: code in a sandbox could read them."""

    index_url: str = PYPI
    extra_index_urls: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    ca_file: str | None = None  # on the host
    had_credentials: bool = False  # an index wants some, which sandboxes are not given

    @property
    def index_urls(self) -> tuple[str, ...]:
        """Every index."""
        return (self.index_url, *self.extra_index_urls)


def without_credentials(url: str) -> str:
    """`url` with neither user nor password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def parse_config(listing: str) -> dict[str, str]:
    """What `pip config list` printed, as settings of `pip install`."""
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for line in listing.splitlines():
        match = _LINE.match(line.strip())
        if match and match["section"] in sections:
            try:
                value = ast.literal_eval(match["value"])
            except (SyntaxError, ValueError):
                value = match["value"]
            sections[match["section"]][match["key"].replace("_", "-")] = str(value)
    merged: dict[str, str] = {}
    for name in _SECTIONS:
        merged |= sections[name]
    return merged


def pip_config(settings: Mapping[str, str], ca_file: str | None) -> PipConfig:
    """The configuration in `settings`; unusable index URLs (such as file:) are left out."""
    index = settings.get("index-url", PYPI)
    extra = settings.get("extra-index-url", "").split()
    usable = [url for url in extra if urlsplit(url).scheme in ("http", "https")]
    if urlsplit(index).scheme not in ("http", "https"):
        index = PYPI
    return PipConfig(
        index_url=without_credentials(index),
        extra_index_urls=tuple(without_credentials(url) for url in usable),
        trusted_hosts=tuple(settings.get("trusted-host", "").split()),
        ca_file=ca_file,
        had_credentials=any("@" in urlsplit(url).netloc for url in (index, *usable)),
    )


def ca_file(settings: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """The certificate bundle that this machine trusts."""
    paths = [settings.get("cert"), *(environ.get(name) for name in _CA_VARIABLES)]
    paths += [CA_FILE, "/etc/pki/tls/certs/ca-bundle.crt", ssl.get_default_verify_paths().cafile]
    return next((path for path in paths if path and Path(path).is_file()), None)


def render(config: PipConfig) -> str:
    """The pip.conf of sandboxes. The proxy is the agent's; break-system-packages is for Debian's Python."""
    lines = ["[global]", f"index-url = {config.index_url}"]
    if config.extra_index_urls:
        lines += ["extra-index-url =", *(f"    {url}" for url in config.extra_index_urls)]
    if config.trusted_hosts:
        lines += ["trusted-host =", *(f"    {host}" for host in config.trusted_hosts)]
    if config.ca_file:
        lines.append(f"cert = {CA_FILE}")
    lines += [
        f"proxy = {PROXY}",
        "disable-pip-version-check = true",
        "no-input = true",
        "no-cache-dir = true",
        "break-system-packages = true",
        "root-user-action = ignore",
        "",
    ]
    return "\n".join(lines)


async def read_pip_config() -> PipConfig:
    """This machine's own configuration, as the gateway's pip sees it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pip",
        "config",
        "list",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    settings = parse_config(out.decode(errors="replace"))
    return pip_config(settings, ca_file(settings, os.environ))
