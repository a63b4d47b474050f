"""The emulator: a `FakeAgentMail` that a reset replaces with a new one."""

from collections.abc import Callable, Collection
from functools import partial

import trio

from trio_agentmail.testing._fake import FakeAgentMail
from trio_agentmail.testing._record import forget_all_but_the_last

from .blocks import Blocks

__all__ = ["Emulator"]

MAX_REMEMBERED = 100
"""Maximum number of entries in each list of the record. An emulator may run for weeks, and requests may be large."""


class Emulator:
    """The state of the program that serves a `FakeAgentMail`: see `serve`.

    Args:
        tell: Called with a line of text for each thing that happens. Parts of the text may come from a client.
        api_keys: The known API keys. `None` means that any key is accepted.
        permissions: The permissions of the keys. `None` means all.
        inboxes: The initial inboxes, each with its pod. `None` means the pod `default`.
        pods: The initial pods.

    Attributes:
        fake: The fake that is served. A reset replaces it.
        tell: The argument of that name.
        commands: A lock that a command holds while it runs.
        blocks: The faults that outlast the command that starts them.
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
        """Replace the fake with a new one, and cut the connections of the old one.

        The new fake serves clients that connect in the meantime.
        """
        await self.blocks.end()
        old, self.fake = self.fake, self._new_fake()
        await old._retire()
        self.note("reset: back to the initial state")

    def note(self, text: str) -> None:
        """Add an entry to the log of the current fake."""
        self.fake._log.note(text)


def new_fake(
    tell: Callable[[str], None],
    api_keys: Collection[str] | None,
    permissions: Collection[str] | None,
    inboxes: Collection[tuple[str, str | None]],
    pods: Collection[str],
) -> FakeAgentMail:
    """Make a fake with the initial inboxes and pods. `Emulator` describes the arguments."""
    fake = FakeAgentMail(api_keys=api_keys, permissions=permissions)
    fake._log.on_note = tell
    fake._log.on_change = partial(forget_all_but_the_last, fake.record, MAX_REMEMBERED)
    for inbox_id, pod_id in inboxes:
        fake.mail.add_inbox(inbox_id, pod_id=pod_id)
    for pod_id in pods:
        fake._agentmail.add_pod(pod_id, now=fake._clock.now())
    return fake
