"""Writing the package's log to standard error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["log_on_stderr"]


@contextmanager
def log_on_stderr(*, verbose: bool) -> Iterator[None]:
    """Within the block, write log records to standard error.

    Args:
        verbose: Write every record from INFO on. By default, only warnings and failed attempts to connect are written.
    """
    logger = logging.getLogger("trio_agentmail")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    if not verbose:
        handler.addFilter(WarningsAndFailedAttempts())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class WarningsAndFailedAttempts(logging.Filter):
    """A filter that passes warnings, and the record "waiting … for the next attempt" after a failed attempt.

    The stream also logs this record after the loss of a subscription. The filter drops it then, since `listen` prints
    the loss as an event.
    """

    def __init__(self) -> None:
        super().__init__()
        self._was_subscribed = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in ("connecting", "subscribed"):
            self._was_subscribed = message == "subscribed"
        return record.levelno >= logging.WARNING or (message.startswith("waiting ") and not self._was_subscribed)
