"""The fake as `trio-agentmail emulate` serves it: it tells what happens, and takes orders over HTTP."""

import logging
from typing import Any

import httpx2
import trio

from trio_agentmail.testing._fake_http_server import HttpConnection
from trio_agentmail.testing._faults.connections import Fault

from .base import EmulatorBase
from .control import CONTROL_PATH, answer_order

__all__ = ["Emulator"]

logger = logging.getLogger("trio_agentmail")


class Emulator(EmulatorBase):
    """An `EmulatorBase`, which documents the arguments, with the control API beside the REST API.

    A bug in it is logged, and the end of one request or connection; in a test it would have to come out.
    """

    async def _respond(self, request: httpx2.Request) -> Any:
        try:
            if request.url.path.startswith(CONTROL_PATH):
                return await answer_order(self, request)
            return await super()._respond(request)
        except Exception:
            logger.exception("a bug in the emulator: %s %s", request.method, request.url.path)
            message = "a bug in the emulator, which has logged it"
            return httpx2.Response(500, json={"name": "InternalServerError", "message": message})

    async def _serve_http(self, connection: HttpConnection) -> None:
        try:
            await super()._serve_http(connection)
        except Exception:
            logger.exception("a bug in the emulator, on a connection to the REST API")

    async def _serve_stream(self, stream: trio.abc.Stream, fault: Fault | None) -> None:
        try:
            await super()._serve_stream(stream, fault)
        except Exception:
            logger.exception("a bug in the emulator, on a WebSocket")
