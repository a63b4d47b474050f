"""The fake as `trio-agentmail emulate` serves it: it tells what happens, and takes orders over HTTP."""

from collections.abc import Callable, Collection
from typing import Any

import httpx

from trio_agentmail.events import Message

from ._emulator_control import CONTROL_PATH, Control
from ._fake import FakeAgentMail

__all__ = ["Emulator"]

MAX_REMEMBERED = 1000
"""How many requests, handshakes and the like are remembered: an emulator may run for weeks."""


class Emulator(FakeAgentMail):
    """A `FakeAgentMail` that is alone in its process.

    Args:
        tell: Called for each thing that happens, with a text in which others may have chosen what stands.
        api_keys: The API keys that it knows; `None`: it knows any.
        permissions: What the keys may do; `None`: everything.

    Attributes:
        tell: As given.
        receivers: To how many connections the last event was pushed, or 0, if it was set to that since then.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        api_keys: Collection[str] | None = None,
        permissions: Collection[str] | None = None,
    ) -> None:
        super().__init__(api_keys=api_keys, permissions=permissions)
        self.tell = tell
        self._control = Control(self)

    @property
    def receivers(self) -> int:
        return self._receivers

    @receivers.setter
    def receivers(self, count: int) -> None:
        self._receivers = count

    def message(self, inbox_id: str, message_id: str) -> Message | None:
        """The mail, if there is one."""
        mail = self._store.mail(inbox_id, message_id)
        return None if mail is None else mail.message

    def add_pod(self, pod_id: str) -> None:
        """Make a pod, with no inbox in it."""
        self._store.add_pod(pod_id, self._now())

    def _note(self, text: str) -> None:
        super()._note(text)
        self.tell(text)
        remembered: list[list[Any]] = [
            self.handshakes,
            self.frames,
            self.subscriptions,
            self.close_codes,
            self.pings,
            self.requests,
        ]
        for things in remembered:
            del things[:-MAX_REMEMBERED]

    async def _respond(self, request: httpx.Request) -> Any:
        if request.url.path.startswith(CONTROL_PATH):
            return await self._control.answer(request)
        return await super()._respond(request)
