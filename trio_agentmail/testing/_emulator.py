"""The fake as `trio-agentmail emulate` serves it: it tells what happens, and takes orders over HTTP."""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import httpx

from trio_agentmail.events import Message

from ._emulator_control import CONTROL_PATH, Control
from ._fake import FakeAgentMail

__all__ = ["Emulator"]

MAX_RECORDED = 1000
"""How many requests and handshakes are remembered: an emulator may run for weeks."""


class Emulator(FakeAgentMail):
    """A `FakeAgentMail` that is alone in its process.

    Args:
        tell: Called for each thing that happens, with a word for it and with details, in which others chose what
            stands.
        api_keys: The API keys that it knows; `None`: it knows any.

    Attributes:
        receivers: To how many connections the event was pushed that went to most of them, since this was set to 0.
    """

    def __init__(self, tell: Callable[[str, str], None], *, api_keys: Collection[str] | None = None) -> None:
        super().__init__(api_keys=api_keys)
        self._tell_somebody = tell
        self._control = Control(self, self._tell)
        self.receivers = 0

    def message(self, inbox_id: str, message_id: str) -> Message | None:
        """The mail, if there is one."""
        mail = self._store.mail(inbox_id, message_id)
        return None if mail is None else mail.message

    def add_pod(self, pod_id: str) -> None:
        """Make a pod, with no inbox in it."""
        self._store.empty_pods.add(pod_id)

    def time_of_day(self) -> datetime:
        return self._now()

    def _tell(self, what: str, details: str = "") -> None:
        del self.handshakes[:-MAX_RECORDED], self.requests[:-MAX_RECORDED]
        self._tell_somebody(what, details)

    async def _respond(self, request: httpx.Request) -> Any:
        if request.url.path.startswith(CONTROL_PATH):
            return await self._control.answer(request)
        return await super()._respond(request)

    def _record(self, request: httpx.Request, status: int | None) -> None:
        super()._record(request, status)
        # The target as it was sent, percent-encoding and all.
        target = request.url.raw_path.decode("ascii")
        self._tell("request", f"{request.method} {target}: {status or 'no answer'}")

    def _pushed(self, frame: Any, count: int) -> None:
        self.receivers = max(self.receivers, count)
        self._tell("pushed", f"{frame['event_type']} {frame.get('event_id')} to {count}")
