"""Whether a call comes from the run of Trio that an object belongs to."""

import trio

__all__ = ["TrioRun"]


class TrioRun:
    """The call of `trio.run` in which this was made."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def check(self, what: str) -> None:
        """Raise in place of waiting for ever for something that happens in another run.

        Args:
            what: What was called.

        Raises:
            RuntimeError: The call comes from another thread, or from another `trio.run` in the same one.
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
