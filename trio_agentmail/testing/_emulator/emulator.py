"""The emulator: a `FakeAgentMail` that can be replaced by a new one."""

from collections.abc import Callable, Collection
from functools import partial

import trio

from trio_agentmail.testing._fake import FakeAgentMail
from trio_agentmail.testing._record import forget_all_but_the_last

from .blocks import Blocks

__all__ = ["Emulator"]

MAX_REMEMBERED = 100
"""How many entries each list of the record keeps. An emulator may run for weeks, and requests may be large."""


class Emulator:
    """The state of the program that serves a `FakeAgentMail`: see `serve`.

    Args:
        tell: Called with a line of text for everything that happens. Parts of it may come from a client.
        api_keys: The API keys that it knows; `None`: it accepts any.
        permissions: The permissions of the keys; `None`: all of them.
        inboxes: The inboxes that exist in the beginning, each with its pod; `None`: the pod `default`.
        pods: The pods that exist in the beginning.

    Attributes:
        fake: What is served. A reset replaces it.
        tell: As given.
        commands: The lock of the command that is carried out.
        blocks: The faults that last longer than the command that began them.
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
        self.tell = tell
        self.commands = trio.Lock()
        self.blocks = Blocks()
        self._new_fake = partial(new_fake, tell, api_keys, permissions, inboxes, pods)
        self.fake = self._new_fake()

    async def reset(self) -> None:
        """Begin anew: replace the fake, and cut the connections of the old one.

        A client that comes in the meantime is served by the new one.
        """
        await self.blocks.end()
        old, self.fake = self.fake, self._new_fake()
        await old._retire()
        self.note("reset: everything is as it was in the beginning")

    def note(self, text: str) -> None:
        """Add an entry to the log of the present fake."""
        self.fake._log.note(text)


def new_fake(
    tell: Callable[[str], None],
    api_keys: Collection[str] | None,
    permissions: Collection[str] | None,
    inboxes: Collection[tuple[str, str | None]],
    pods: Collection[str],
) -> FakeAgentMail:
    """Make a fake with what exists in the beginning. `Emulator` describes the arguments."""
    fake = FakeAgentMail(api_keys=api_keys, permissions=permissions)
    fake._log.on_note = tell
    fake._log.on_change = partial(forget_all_but_the_last, fake.record, MAX_REMEMBERED)
    for inbox_id, pod_id in inboxes:
        fake.mail.add_inbox(inbox_id, pod_id=pod_id)
    for pod_id in pods:
        fake._agentmail.add_pod(pod_id, now=fake._clock.now())
    return fake
