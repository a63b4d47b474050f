"""A lock on the journal's file itself, independent of its name and of other descriptors of it."""

import os
import struct
import sys
from pathlib import Path

from trio_agentmail.errors import JournalError, JournalInUseError

if sys.platform == "linux":  # pragma: no branch
    import fcntl

__all__ = ["FileLock", "in_use"]

BYTE = 2**62
"""The offset of the locked byte. It is far beyond the end of any file, and the bytes that SQLite locks are at 2**30."""


def in_use(path: Path) -> JournalInUseError:
    """Return the error that a second consumer of a journal gets."""
    return JournalInUseError(
        f"the journal {path} is in use by another process or another stream: a journal has one consumer at a time; "
        "give this one a file of its own, or end the other"
    )


class FileLock:
    """An exclusive lock on the file, from `acquire` to `close`. Linux only; elsewhere it does nothing.

    The `-lock` file beside the journal does not cover two cases. A consumer that opens the journal by another name, or
    after the lock file was removed, uses another lock file. And SQLite's locks are POSIX locks: the operating system
    drops them as soon as this process closes *any* descriptor of the file, for example by copying it. An open file
    description lock belongs to the file instead of its name, and to this descriptor instead of the process.

    Closing this descriptor drops SQLite's POSIX locks too. So close SQLite's connection to the file first, and do not
    lock a file that may belong to another program.
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
                pass  # the file system does not support these locks; the `-lock` file remains

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
    # A forked child shares the open file description, and would hold the lock after this process has ended.
    os.register_at_fork(after_in_child=_close_all)
