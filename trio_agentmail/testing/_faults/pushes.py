"""What a test can make go wrong with the next pushes."""

from typing import Protocol, TypeAlias

import attrs
import trio

from trio_agentmail.testing._checks import check_seconds, check_whole

from .connections import FaultQueue

__all__ = ["PushFaults", "PushNow"]


@attrs.frozen
class SwallowPush:
    def __str__(self) -> str:
        return "swallow_pushes()"


@attrs.frozen
class CorruptPush:
    def __str__(self) -> str:
        return "corrupt_pushes()"


@attrs.frozen
class DuplicatePush:
    copies: int

    def __str__(self) -> str:
        return f"duplicate_pushes(copies={self.copies})"


@attrs.frozen
class DelayPush:
    seconds: float

    def __str__(self) -> str:
        return f"delay_pushes({self.seconds:g})"


@attrs.frozen
class ReorderPushes:
    times: int

    def __str__(self) -> str:
        return f"reorder_pushes({self.times})"


PushFault: TypeAlias = SwallowPush | CorruptPush | DuplicatePush | DelayPush | ReorderPushes


class PushNow(Protocol):
    def __call__(self, text: str, sent: str | None = None) -> None:
        """Push an event to those that it is for.

        Args:
            sent: What they get; `None`: its text.
        """


class PushFaults:
    """Faults of pushes to come. Each event that is pushed takes one, while there are some, whoever listens.

    `times` is how many events a fault is for; `None`: all that follow, until `clear_faults()`. An argument that makes
    no sense is a TypeError or a ValueError at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._push_faults: FaultQueue[PushFault] = FaultQueue()
        self._held_back: list[str] = []
        self._forgotten = trio.Event()

    def swallow_pushes(self, times: int | None = 1) -> None:
        """Nobody is told. A mail is there all the same, and the REST API has it."""
        self._push_faults.add(SwallowPush(), times)

    def corrupt_pushes(self, times: int | None = 1) -> None:
        """The event's text comes without its second half, so that it is no JSON."""
        self._push_faults.add(CorruptPush(), times)

    def duplicate_pushes(self, times: int | None = 1, copies: int = 1) -> None:
        """The event comes again, as often as `copies` says."""
        check_whole("copies", copies, 1)
        self._push_faults.add(DuplicatePush(copies), times)

    def delay_pushes(self, seconds: float, times: int | None = 1) -> None:
        """The event comes so much later, to the connections that are open then. What follows overtakes it."""
        check_seconds("seconds", seconds)
        self._push_faults.add(DelayPush(seconds), times)

    def reorder_pushes(self, times: int) -> None:
        """Events are held back until there are so many, and then come the last one first."""
        check_whole("times", times, 1)
        self._push_faults.add(ReorderPushes(times), times)

    def _push(self, text: str, push_now: PushNow) -> PushFault | None:
        """Push an event, as the next fault says, and return that."""
        fault = self._push_faults.take()
        match fault:
            case None:
                push_now(text)
            case CorruptPush():
                push_now(text, text[: len(text) // 2])
            case DuplicatePush(copies):
                for _ in range(1 + copies):
                    push_now(text)
            case DelayPush(seconds):
                # Not in the nursery of a connection: that may be gone by then.
                trio.lowlevel.spawn_system_task(_push_later, seconds, text, push_now, self._forgotten)
            case ReorderPushes(times):
                self._held_back.append(text)
                if len(self._held_back) == times:
                    self._push_held_back(push_now)
        return fault

    def _clear_push_faults(self, push_now: PushNow) -> None:
        self._push_faults.clear()
        self._push_held_back(push_now)

    def _forget_pushes(self) -> None:
        """What is held back or delayed is pushed to nobody, and what comes from now on goes well."""
        self._push_faults.clear()
        self._held_back.clear()
        self._forgotten.set()
        self._forgotten = trio.Event()

    def _push_held_back(self, push_now: PushNow) -> None:
        held_back, self._held_back = self._held_back, []
        for text in reversed(held_back):
            push_now(text)


async def _push_later(seconds: float, text: str, push_now: PushNow, forgotten: trio.Event) -> None:
    with trio.move_on_after(seconds):
        await forgotten.wait()
    if not forgotten.is_set():
        push_now(text)
