"""The fake as `trio-agentmail emulate` serves it: it tells what happens, and takes orders over HTTP."""

from typing import Any

import httpx

from ._emulator_base import EmulatorBase
from ._emulator_control import CONTROL_PATH, answer_order

__all__ = ["Emulator"]


class Emulator(EmulatorBase):
    """An `EmulatorBase`, which documents the arguments, with the control API beside the REST API."""

    async def _respond(self, request: httpx.Request) -> Any:
        if request.url.path.startswith(CONTROL_PATH):
            return await answer_order(self, request)
        return await super()._respond(request)
