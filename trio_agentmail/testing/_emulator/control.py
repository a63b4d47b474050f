"""The control API of the emulator: HTTP under a path that AgentMail does not have, for this machine only.

    GET    /_emulator          how many are connected and subscribed, and where
    POST   /_emulator/trigger  {"event_type": "message.received", "inbox_id": …, …}: see `trigger`
    POST   /_emulator/faults   {"fault": "cut", …}: see `faults`
    DELETE /_emulator/faults   what comes from now on goes well, and what lasts ends
    POST   /_emulator/reset    all is as it was in the beginning; no body

What is wrong with an order is answered with a status and a `message`.
"""

import ipaddress
from typing import Any

import httpx2
import orjson
import trio

from trio_agentmail._codec import parse_object

from .base import EmulatorBase
from .faults import BadOrder, order_fault
from .trigger import trigger

__all__ = ["CONTROL_PATH", "SERVER", "answer_order"]

CONTROL_PATH = "/_emulator"

SERVER = "trio-agentmail emulate"
"""The header `Server` of every answer: whoever gives orders can tell that it is an emulator that took them."""


async def answer_order(emulator: EmulatorBase, request: httpx2.Request) -> httpx2.Response:
    """Do what is asked for, and say what has become of it.

    Args:
        emulator: Whom the order is for.
    """
    await trio.lowlevel.checkpoint()
    try:
        status, answer = 200, await _obey(emulator, request)
    except BadOrder as bad:
        status, answer = bad.status, {"message": bad.message}
    return httpx2.Response(
        status, headers={"Content-Type": "application/json", "Server": SERVER}, content=orjson.dumps(answer)
    )


async def _obey(emulator: EmulatorBase, request: httpx2.Request) -> dict[str, Any]:
    # A page that is served from this machine may use the rest, but has no orders to give.
    is_from_page = "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none"
    if not _is_loopback(request.extensions["server_address"]) or is_from_page:
        raise BadOrder(403, "the emulator takes orders from programs on its own machine only")
    method = request.method.replace("HEAD", "GET")  # whose body is not sent
    path = request.url.path.removeprefix(CONTROL_PATH)
    if (method, path) in (("GET", ""), ("GET", "/")):
        return {"connected": emulator.connected, "subscribed": emulator.subscribed}
    # One after the other: who clears faults ends the outage that is just beginning.
    async with emulator.orders:
        return await _carry_out(emulator, method, path, request.content)


async def _carry_out(emulator: EmulatorBase, method: str, path: str, body: bytes) -> dict[str, Any]:
    match method, path:
        case "POST", "/trigger":
            return await trigger(emulator, _fields(body))
        case "POST", "/faults":
            fields = _fields(body)
            connected = emulator.connected
            await order_fault(emulator, fields)
            name = fields.pop("fault")
            more = [f"{argument}={_shown(value)}" for argument, value in fields.items()]
            emulator.tell(f"fault: {' '.join([name, *more])}")
            return {"connected": connected}
        case "DELETE", "/faults":
            await emulator.lasting.end()
            emulator.clear_faults()
            emulator.tell("faults: cleared")
            return {}
        case "POST", "/reset":
            if body and _fields(body):
                raise BadOrder(400, "reset takes nothing, and needs no body")
            await emulator.reset()
            return {}
    raise BadOrder(404, f"the emulator has no {method} {CONTROL_PATH}{path}")


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _fields(body: bytes) -> dict[str, Any]:
    fields = parse_object(body)
    if fields is None:
        raise BadOrder(400, "the body is not a JSON object in UTF-8")
    # What is null is not given.
    return {name: value for name, value in fields.items() if value is not None}
