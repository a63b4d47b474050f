"""Checks that a call comes from the `trio.run` to which an object belongs."""

import trio

__all__ = ["TrioRun"]


class TrioRun:
    """The call of `trio.run` in which this object was made."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def check(self, what: str) -> None:
        """Raise if the call comes from elsewhere, because it might wait for ever for another run.

        Args:
            what: The name of the method that was called, for the error message.

        Raises:
            RuntimeError: The call comes from another thread, or from another `trio.run` in the same thread.
        """
        try:
            token = trio.lowlevel.current_trio_token()
        except RuntimeError:
            token = None
        if token is not self._token:
            raise RuntimeError(
                f"{what} was called outside of the trio.run() in which the stream was opened: from another thread, "
                "use trio.from_thread.run() with the trio_token of that run"
            )
