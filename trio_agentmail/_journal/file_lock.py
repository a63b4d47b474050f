"""A lock on the journal's file itself, whatever its name and whoever opens and closes it."""

import os
import struct
import sys
from pathlib import Path

from trio_agentmail.errors import JournalError, JournalInUseError

if sys.platform == "linux":  # pragma: no branch
    import fcntl

__all__ = ["FileLock", "in_use"]

BYTE = 2**62
"""The byte that is locked. It is far from the end of any file, and from the bytes that SQLite locks (at 2**30)."""


def in_use(path: Path) -> JournalInUseError:
    """Return the error for a second consumer."""
    return JournalInUseError(
        f"the journal {path} is in use by another process or another stream: a journal has one consumer at a time; "
        "give this one a file of its own, or end the other"
    )


class FileLock:
    """An exclusive lock on the file, from `acquire` to `close`. Linux only; elsewhere it does nothing.

    The lock beside the journal has two holes. A consumer that opens the file by another name, or after the lock file
    was removed, has another lock. And it is a POSIX lock, like all of SQLite's: the operating system drops it as soon
    as this process closes *any* descriptor of that file, which copying the file does. An open file description lock
    belongs to the file and not to its name, and to this descriptor and not to the process.

    For the same reason SQLite's connection to the file must be closed before this is, and a file that may belong to
    another program is not locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the file, which must exist.

        Raises:
            JournalInUseError: It is locked already.
            JournalError: It cannot be opened.
        """
        if sys.platform == "linux":  # pragma: no branch
            try:
                self._descriptor = os.open(self._path, os.O_RDWR)
            except OSError as exc:
                raise JournalError(f"the journal {self._path} cannot be opened: {exc.strerror}") from exc
            _descriptors.add(self._descriptor)
            # struct flock: type, whence, start, length, pid
            asked = struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, BYTE, 1, 0)
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, asked)
            except BlockingIOError:
                raise in_use(self._path) from None
            except OSError:
                pass  # the file system has no such locks; the lock beside the journal remains

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


_descriptors: set[int] = set()


def _close_all() -> None:
    while _descriptors:
        os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):  # pragma: no branch
    # A child made by `fork` shares the description, and would keep the lock after this process has ended.
    os.register_at_fork(after_in_child=_close_all)
