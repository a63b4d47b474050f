"""The state of a stream, for its tasks and its session."""

import logging

import trio

from ._statistics import State

__all__ = ["StreamState"]

logger = logging.getLogger("trio_agentmail")


class StreamState:
    """The state of a stream. Tasks can wait for it to change.

    Attributes:
        value: The state, as in `AgentMailSession.state`.
        next_attempt_at: While the state is "waiting", when the next attempt begins, on Trio's clock; otherwise None.
        is_stopping: Whether `AgentMailSession.stop` has been called. From then on, the state is "stopping" or "closed".
    """

    def __init__(self) -> None:
        self.value: State = "closed"
        self.next_attempt_at: float | None = None
        self.is_stopping = False
        self._changed = trio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended or is about to."""
        return self.value in ("stopping", "closed")

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` if the stream has ended or is about to."""
        if self.has_ended:
            raise trio.ClosedResourceError("the stream has ended")

    async def changed(self) -> None:
        """Wait until the state changes."""
        await self._changed.wait()

    def set(self, value: State) -> None:
        """Change the state, and log the change. Use `set_waiting` for "waiting"."""
        if self._set(value):
            self.next_attempt_at = None
            logger.info("%s", value)

    def set_waiting(self, next_attempt_at: float, reason: str | None) -> None:
        """Change the state to "waiting".

        Args:
            next_attempt_at: When the next attempt begins, on Trio's clock.
            reason: Why the last attempt or connection failed.
        """
        self._set("waiting")
        self.next_attempt_at = next_attempt_at
        logger.info("waiting %.1f s for the next attempt: %s", next_attempt_at - trio.current_time(), reason)

    def stop(self) -> None:
        """Change the state to "stopping"."""
        self.is_stopping = True
        self.set("stopping")

    def _set(self, value: State) -> bool:
        if value == self.value or (self.is_stopping and value not in ("stopping", "closed")):
            return False
        self.value = value
        self._changed.set()
        self._changed = trio.Event()
        return True
