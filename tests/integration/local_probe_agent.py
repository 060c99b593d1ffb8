"""A stand-in for the agent that runs what a test wants to see from inside a sandbox."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

sys.path.insert(0, "/opt/llmsafespace/agent")
if len(sys.argv) > 1:
    sys.path[:0] = sys.argv[1:]

from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import prove_as_agent

Json = dict[str, Any]
CLOCK = -1


async def serve(stream: FrameStream, token: bytes) -> None:
    await prove_as_agent(stream, token, "")
    stream.send(FrameKind.JSON, b"{}")
    while True:
        try:
            _, body = await stream.next_frame()
        except ConnectionError:
            return
        try:
            request = json.loads(body)
            method = METHODS[request["method"]]
        except (ValueError, TypeError, KeyError):  # a file or a request that the probe cannot take
            stream.close()
            return
        try:
            answer = {"result": await asyncio.to_thread(method, request.get("params", {}))}
        except RuntimeError as error:
            answer = {"error": {"code": "invalid_request", "message": str(error)}}
        stream.send(FrameKind.JSON, json.dumps({"id": request["id"], **answer}).encode())


def ready(_: Json) -> Json:
    return {"state": "ready", "startedAt": time.time(), "lastActivity": time.time()}


def never_ready(params: Json) -> Json:
    time.sleep(300)
    return {}


def run(params: Json) -> Json:
    ran = subprocess.run(
        [sys.executable, "-I", "-c", params["code"]],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return {"status": ran.returncode, "stdout": ran.stdout, "stderr": ran.stderr}


def spawn(params: Json) -> Json:
    session = params.get("session", True)
    child = subprocess.Popen([sys.executable, "-I", "-c", params["code"]], start_new_session=session)
    return {"pid": child.pid}


def leave(params: Json) -> Json:
    os._exit(params["status"])


def deadline(params: Json) -> Json:
    """Say by when something has ended here, `seconds` from now (None: nothing runs), as the agent does."""
    seconds = params["seconds"]
    moment = 0 if seconds is None else int((time.monotonic() + seconds) * 1000)
    os.write(CLOCK, moment.to_bytes(8, "little"))
    return {}


def nonsense(params: Json) -> Json:
    """Write to the clock what no agent would; the last piece again and again."""
    pieces = [bytes.fromhex(piece) for piece in params["pieces"]]
    for piece in pieces:
        os.write(CLOCK, piece)

    def flood() -> None:
        while True:
            os.write(CLOCK, pieces[-1])

    threading.Thread(target=flood, daemon=True).start()
    return {}


def bind(params: Json) -> Json:
    if params.get("cwd") == "/refuse":
        raise RuntimeError("refused")
    if params.get("cwd") == "/die":
        os._exit(3)
    if params.get("cwd") == "/wait":
        time.sleep(60)
    return ready(params)


def shutdown(params: Json) -> Json:
    return {}


METHODS = {
    "ready": ready,
    "run": run,
    "spawn": spawn,
    "leave": leave,
    "deadline": deadline,
    "nonsense": nonsense,
    "bind": bind,
    "shutdown": shutdown,
}


async def main() -> None:
    global CLOCK
    config = json.loads(sys.stdin.buffer.read())
    CLOCK = config["clock"]
    if any(script["name"] == "hang" for script in config.get("preloadScripts", [])):
        METHODS["ready"] = never_ready
    if config.get("env", {}).get("PYTHON_FAIL"):
        sys.exit("it was told to fail")
    listening = socket.socket(fileno=config["listen"]["fd"])
    listening.setblocking(False)
    token = bytes.fromhex(config["token"])
    loop = asyncio.get_running_loop()
    tasks = set()

    class Served(FrameStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            tasks.add(asyncio.ensure_future(serve(self, token)))

    server = await loop.create_unix_server(Served, sock=listening)
    await server.serve_forever()


asyncio.run(main())
