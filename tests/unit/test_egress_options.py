"""The command line of the egress proxy as a service."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from llmsafespace_gateway.egress.__main__ import arguments


@pytest.fixture
def key(tmp_path: Path) -> str:
    file = tmp_path / "key"
    file.write_bytes(b"k" * 32)
    return f"--key-file={file}"


def test_denied_networks(key: str) -> None:
    given = ["--denied=203.0.113.0/24", "--denied=198.51.100.7", "--denied=2001:db8::/32"]
    assert arguments([key, *given]).denied == [
        ipaddress.ip_network("203.0.113.0/24"),
        ipaddress.ip_network("198.51.100.7/32"),
        ipaddress.ip_network("2001:db8::/32"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", "--denied: 10.0.0.1/8 is an address in a network: write 10.0.0.0/8"),
        ("2001:db8::1/32", "--denied: 2001:db8::1/32 is an address in a network: write 2001:db8::/32"),
        ("10.0.0.0/33", "--denied: 10.0.0.0/33 is no network like 203.0.113.0/24"),
        ("inside", "--denied: inside is no network like 203.0.113.0/24"),
    ],
)
def test_what_is_no_network_is_named_with_what_to_write(
    key: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments([key, f"--denied={text}"])
    assert message in capsys.readouterr().err
