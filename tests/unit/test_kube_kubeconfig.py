"""Where the API server is, and with which credentials, as kubeconfigs and pods say."""

from __future__ import annotations

import base64
import json
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_kube.api import kubeconfig
from llmsafespace_kube.api.errors import KubeError
from llmsafespace_kube.api.kubeconfig import Access, ConfigurationError, Credentials
from llmsafespace_kube.api.server import Server, in_cluster
from tests.certificates import self_signed


def written(folder: Path, user: dict[str, Any], name: str = "config", **cluster: Any) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": "https://api.example.com:6443/", **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    path = folder / name
    path.write_text(json.dumps(document))
    return str(path)


def script(folder: Path, text: str) -> Path:
    path = folder / "credentials"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def test_a_token_and_an_authority(tmp_path: Path) -> None:
    data = base64.b64encode(b"PEM").decode()
    options = {"certificate-authority-data": data, "tls-server-name": "kubernetes"}
    found = await kubeconfig.load(written(tmp_path, {"token": "secret"}, **options))
    assert found.url == "https://api.example.com:6443"
    assert (found.authority, found.server_name, found.verified) == (b"PEM", "kubernetes", True)
    assert found.credentials.token == "secret"


async def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(b"CA")
    (tmp_path / "me.crt").write_bytes(b"CERTIFICATE")
    (tmp_path / "me.key").write_bytes(b"KEY")
    user = {"client-certificate": "me.crt", "client-key": "me.key"}
    found = await kubeconfig.load(written(tmp_path, user, **{"certificate-authority": "ca.crt"}))
    assert (found.authority, found.credentials.certificate, found.credentials.key) == (
        b"CA",
        b"CERTIFICATE",
        b"KEY",
    )


async def test_of_several_files_the_first_that_says_something_counts(tmp_path: Path) -> None:
    first = written(tmp_path, {"token": "first"}, "a")
    second = written(tmp_path, {"token": "second"}, "b")
    paths = os.pathsep.join([str(tmp_path / "absent"), first, second])
    assert (await kubeconfig.load(paths)).credentials.token == "first"


@pytest.mark.parametrize(
    ("user", "cluster", "words"),
    [
        ({"username": "me", "password": "x"}, {}, "password are not supported"),
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider"),
        ({}, {"proxy-url": "http://proxy"}, "proxy-url is not supported"),
        ({}, {"server": "api.example.com"}, "must be an https://"),
        ({}, {"certificate-authority-data": "%%%"}, "certificate-authority cannot be read"),
        ({}, {"certificate-authority": "absent.crt"}, "certificate-authority cannot be read"),
        ({"exec": {"apiVersion": "v1", "command": "true"}}, {}, "apiVersion 'v1'"),
    ],
)
async def test_what_cannot_be_used_is_said(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await kubeconfig.load(written(tmp_path, user, **cluster))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("- a", "not a kubeconfig"),
        ("{}", "current-context"),
        ("current-context: here", "there is no context 'here'"),
        ("\x00", "cannot be read"),
    ],
)
async def test_a_file_that_is_no_kubeconfig_is_said(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        await kubeconfig.load(str(path))
    with pytest.raises(ConfigurationError, match="no such file"):
        await kubeconfig.load(str(tmp_path / "absent"))


async def test_a_command_gives_credentials(tmp_path: Path) -> None:
    status = {"token": "from a command"}
    answer = json.dumps({"kind": "ExecCredential", "status": status})
    program = script(tmp_path, f"""test "$STAGE" = 1 && test -n "$KUBERNETES_EXEC_INFO" && echo '{answer}'""")
    command = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": f"./{program.name}",
        "env": [{"name": "STAGE", "value": "1"}],
    }
    found = await kubeconfig.load(written(tmp_path, {"exec": command}))
    assert found.credentials.token == "from a command"


@pytest.mark.parametrize(
    ("text", "words"),
    [("echo no login >&2; exit 3", "no login"), ("exit 3", "status 3"), ("echo {}", "not an ExecCredential")],
)
async def test_a_command_that_fails_is_quoted(tmp_path: Path, text: str, words: str) -> None:
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script(tmp_path, text))}
    with pytest.raises(ConfigurationError, match=words):
        await kubeconfig.load(written(tmp_path, {"exec": command}))


def test_a_pod_is_told_where(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConfigurationError, match=r"ca\.crt"):
        in_cluster(tmp_path, environment)
    (tmp_path / "ca.crt").write_text("CA")
    (tmp_path / "token").write_text("")
    with pytest.raises(ConfigurationError, match="is empty"):
        in_cluster(tmp_path, environment)
    (tmp_path / "token").write_text("account\n")
    assert in_cluster(tmp_path, environment).url == "https://[fd00::1]:443"
    with pytest.raises(ConfigurationError, match="does not run in a pod"):
        in_cluster(tmp_path, {})


async def test_a_token_that_its_file_has_anew_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    server = Server(Access(url="http://api", credentials=Credentials(token_file=str(token))))
    assert await server.credentials() == {"Authorization": "Bearer first"}
    token.write_text("second")
    assert await server.credentials() == {"Authorization": "Bearer first"}
    monkeypatch.setattr("llmsafespace_kube.api.server._READ_INTERVAL", 0.0)
    assert await server.credentials() == {"Authorization": "Bearer second"}
    token.unlink()
    assert await server.credentials() == {"Authorization": "Bearer second"}


async def test_credentials_that_are_refused_are_asked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", written(tmp_path, {"token": "old"}))
    server = await Server.find()
    written(tmp_path, {"token": "new"})
    assert await server.renew()
    assert await server.credentials() == {"Authorization": "Bearer new"}
    assert not await server.renew()  # just now


async def test_what_is_wrong_is_said_with_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "absent")
    monkeypatch.setenv("KUBECONFIG", path)
    with pytest.raises(KubeError, match=path):
        await Server.find()


def test_certificates_are_checked_unless_told_otherwise() -> None:
    assert Server(Access(url="https://api")).tls.verify_mode == ssl.CERT_REQUIRED
    assert Server(Access(url="https://api", verified=False)).tls.verify_mode == ssl.CERT_NONE
    with pytest.raises(ConfigurationError, match="not PEM"):
        Server(Access(url="https://api", authority=b"nonsense"))
    certificate, key = self_signed(["me"])
    shown = Credentials(certificate=certificate.encode(), key=key.encode())
    assert Server(Access(url="https://api", authority=certificate.encode(), credentials=shown)).tls
    broken = Credentials(certificate=b"nonsense", key=b"nonsense")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Server(Access(url="https://api", credentials=broken))
