"""The emulator on ports, with the control API beside the REST API."""

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import httpx2
import trio

from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.testing._wire.http_server import HttpConnection, NoAnswer
from trio_agentmail.testing._wire.ports import Services, serve_on_ports

from .control import CONTROL_PATH, answer_command
from .emulator import Emulator

__all__ = ["respond", "serve"]

logger = logging.getLogger("trio_agentmail")


@asynccontextmanager
async def serve(
    emulator: Emulator,
    port: int = 0,
    ssl_context: ssl.SSLContext | None = None,
    *,
    http_port: int = 0,
    host: str = "127.0.0.1",
    allow_hosts: Collection[str] = (),
) -> AsyncIterator[AgentMailEnvironment]:
    """Serve an emulator within the block, as `FakeAgentMail.serve` does. Faults end with the block.

    An exception in the fake, which is a bug, is logged and ends one request or connection. In a test, the fake raises
    it out of the block.
    """
    services = Services(partial(_serve_websocket, emulator), partial(respond, emulator), emulator.note, _serve_requests)
    async with (
        emulator.blocks.tasks(),
        serve_on_ports(
            services, port, ssl_context, http_port=http_port, host=host, allow_hosts=allow_hosts
        ) as environment,
    ):
        yield environment


async def respond(emulator: Emulator, request: httpx2.Request) -> httpx2.Response | NoAnswer:
    """Answer a request to the REST API or to the control API."""
    try:
        if request.url.path.startswith(CONTROL_PATH):
            return await answer_command(emulator, request)
        return await emulator.fake._rest.respond(request)
    except Exception:
        logger.exception("a bug in the emulator: %s %s", request.method, request.url.path)
        message = "there is a bug in the emulator; its log has the traceback"
        return httpx2.Response(500, json={"name": "InternalServerError", "message": message})


async def _serve_requests(connection: HttpConnection) -> None:
    try:
        await connection.run()
    except Exception:
        logger.exception("a bug in the emulator, on a connection to the REST API")


async def _serve_websocket(emulator: Emulator, stream: trio.SocketStream, wrap: Callable[[], trio.abc.Stream]) -> None:
    try:
        await emulator.fake._websockets.serve_tcp(stream, wrap)
    except Exception:
        logger.exception("a bug in the emulator, on a WebSocket")
