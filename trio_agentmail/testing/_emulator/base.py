"""The fake as `trio-agentmail emulate` has it, but for its control API: what the orders that come there are for."""

import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.events import Message
from trio_agentmail.testing._agentmail.agentmail import AgentMail
from trio_agentmail.testing._fake import FakeAgentMail
from trio_agentmail.testing._fake_connection import FakeConnection

from .lasting import LastingFaults

__all__ = ["EmulatorBase"]

MAX_REMEMBERED = 100
"""How many requests, handshakes and the like are remembered: an emulator may run for weeks, and bodies are large."""


class EmulatorBase(FakeAgentMail):
    """A `FakeAgentMail` that is alone in its process, and tells what happens.

    Args:
        tell: Called for each thing that happens, with a text in which others may have chosen what stands.
        api_keys: The API keys that it knows; `None`: it knows any.
        permissions: What the keys may do; `None`: everything.
        inboxes: The inboxes that there are to begin with, each with its pod; `None`: the pod `default`.
        pods: The pods that there are to begin with.

    Attributes:
        tell: As given.
        orders: Held while an order is carried out.
        lasting: The faults that go on when the order for them has been answered.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        api_keys: Collection[str] | None = None,
        permissions: Collection[str] | None = None,
        inboxes: Collection[tuple[str, str | None]] = (),
        pods: Collection[str] = (),
    ) -> None:
        super().__init__(api_keys=api_keys, permissions=permissions)
        self.tell = tell
        self.orders = trio.Lock()
        self.lasting = LastingFaults()
        self._receivers: set[FakeConnection] | None = None
        self._inboxes = inboxes
        self._pods = pods
        self._begin()

    @asynccontextmanager
    async def serve(
        self,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        *,
        http_port: int = 0,
        host: str = "127.0.0.1",
        allow_hosts: Collection[str] = (),
    ) -> AsyncIterator[AgentMailEnvironment]:
        """As `FakeAgentMail.serve`. What was ordered ends with the block."""
        async with (
            self.lasting.tasks(),
            super().serve(port, ssl_context, http_port=http_port, host=host, allow_hosts=allow_hosts) as environment,
        ):
            yield environment

    def message(self, inbox_id: str, message_id: str) -> Message | None:
        """The mail, if there is one."""
        return self._agentmail.message(inbox_id, message_id)

    async def reset(self) -> None:
        """Be as in the beginning: all mail is gone, and inboxes and pods but those that there were to begin with;
        WebSockets are cut, faults end, and nothing is remembered.

        Who came while WebSockets are being cut would have one foot in the time before. So nobody is served meanwhile,
        as in an outage; and no request is under way when mail goes, since each is answered in one go.
        """
        await self.lasting.end()
        self._forget_pushes()
        self.clear_faults()
        self._outages += 1
        try:
            await self.drop_connections()
            await self.wait_connected(0)
        finally:
            self._outages -= 1
        self._agentmail = AgentMail(keys=self._agentmail.keys, now=self._now())
        self._begin()
        for things in self._remembered():
            things.clear()
        self._log.clear()
        self.attempts = 0
        self._note("reset: all is as it was in the beginning")

    def _begin(self) -> None:
        for inbox_id, pod_id in self._inboxes:
            self.add_inbox(inbox_id, pod_id=pod_id)
        for pod_id in self._pods:
            self._agentmail.add_pod(pod_id, now=self._now())

    @contextmanager
    def counting(self) -> Iterator[set[FakeConnection]]:
        """The connections to which something is pushed in the block."""
        self._receivers = receivers = set[FakeConnection]()
        try:
            yield receivers
        finally:
            self._receivers = None

    def _pushed_to(self, connections: Collection[FakeConnection]) -> None:
        if self._receivers is not None:
            self._receivers.update(connections)

    def _note(self, text: str) -> None:
        super()._note(text)
        self.tell(text)

    def _notify(self) -> None:
        super()._notify()
        for things in self._remembered():
            del things[:-MAX_REMEMBERED]

    def _remembered(self) -> Iterable[list[Any]]:
        return self.handshakes, self.frames, self.subscriptions, self.close_codes, self.pings, self.requests
