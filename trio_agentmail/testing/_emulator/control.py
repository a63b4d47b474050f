"""The control API of the emulator: HTTP under a path that AgentMail does not use. Only local programs may use it.

    GET    /_emulator          return the numbers of open WebSockets and of subscribed ones
    POST   /_emulator/trigger  {"event_type": "message.received", "inbox_id": …, …}: see `trigger.py`
    POST   /_emulator/faults   {"fault": "drop_connections", …}: see `faults.py`
    DELETE /_emulator/faults   clear all faults
    POST   /_emulator/reset    start over; the body is empty

The response to an invalid command has an error status and a `message`.
"""

import ipaddress
from typing import Any

import httpx2
import orjson
import trio

from trio_agentmail._codec import parse_object

from .emulator import Emulator
from .faults import fault
from .invalid import InvalidCommand
from .trigger import trigger

__all__ = ["CONTROL_PATH", "SERVER", "answer_command"]

CONTROL_PATH = "/_emulator"

SERVER = "trio-agentmail emulate"
"""The `Server` header of every response, by which a client recognizes an emulator."""


async def answer_command(emulator: Emulator, request: httpx2.Request) -> httpx2.Response:
    """Carry out a command, and return the response."""
    await trio.lowlevel.checkpoint()
    try:
        status, answer = 200, await _dispatch(emulator, request)
    except InvalidCommand as exc:
        status, answer = exc.status, {"message": exc.message}
    return httpx2.Response(
        status, headers={"Content-Type": "application/json", "Server": SERVER}, content=orjson.dumps(answer)
    )


async def _dispatch(emulator: Emulator, request: httpx2.Request) -> dict[str, Any]:
    # Web pages served from this machine may use the REST API, but not the control API.
    is_from_page = "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none"
    if not _is_loopback(request.extensions["server_address"]) or is_from_page:
        raise InvalidCommand(403, "the emulator takes commands from programs on its own machine only")
    method = request.method.replace("HEAD", "GET")  # the server omits the body of a response to HEAD
    path = request.url.path.removeprefix(CONTROL_PATH)
    if (method, path) in (("GET", ""), ("GET", "/")):
        return {"connected": emulator.fake.connected, "subscribed": emulator.fake.subscribed}
    # Commands run one at a time, so that clearing the faults also ends an outage that is just beginning.
    async with emulator.commands:
        match method, path:
            case "POST", "/trigger":
                return await trigger(emulator.fake, _fields(request.content))
            case "POST", "/faults":
                return await _fault(emulator, _fields(request.content))
            case "DELETE", "/faults":
                await emulator.blocks.end()
                emulator.fake.faults.clear()
                emulator.tell("faults: cleared")
                return {}
            case "POST", "/reset":
                if request.content and _fields(request.content):
                    raise InvalidCommand(400, "reset takes no fields, and needs no body")
                await emulator.reset()
                return {}
    raise InvalidCommand(404, f"the emulator has no {method} {CONTROL_PATH}{path}")


async def _fault(emulator: Emulator, fields: dict[str, Any]) -> dict[str, Any]:
    connected = emulator.fake.connected
    await fault(emulator, fields)
    arguments = [f"{name}={_shown(value)}" for name, value in fields.items() if name != "fault"]
    emulator.tell(f"fault: {' '.join([fields['fault'], *arguments])}")
    return {"connected": connected}


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _fields(body: bytes) -> dict[str, Any]:
    fields = parse_object(body)
    if fields is None:
        raise InvalidCommand(400, "the body is not a JSON object in UTF-8")
    # A null field counts as missing.
    return {name: value for name, value in fields.items() if value is not None}
