"""Where the store's URL comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import stated_url

URL = "postgresql://ada:secret@host/name"


def test_a_url_comes_from_the_command_line_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"  {URL}\n")
    assert stated_url(URL, "") == URL
    assert stated_url("", str(tmp_path / "url")) == URL
    assert stated_url("", "") == ""


def test_both_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL)
    with pytest.raises(ApiError, match="drop one") as told:
        stated_url(URL, str(tmp_path / "url"))
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "there is no URL"),
        (b" \n", "there is no URL"),
        (b"secret", "there is no URL"),
        (b"\xff\xfe", "there is no URL"),
        (b"postgresql://ada@host:secret/name", "there is no URL"),
    ],
)
def test_a_file_without_a_url_is_told_and_what_to_do(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ApiError) as told:
        stated_url("", str(path))
    message = str(told.value)
    assert message.startswith(f"--database-url-file {path}: {reason}")
    assert "postgresql://user:password@host/name" in message
    assert "secret" not in message
