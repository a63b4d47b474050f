"""The files of an open journal, watched: whether they are still those that were opened, and nobody else writes to them.

SQLite does not notice when a file that it has open is removed, renamed or replaced. It goes on writing to what has no
name any more, and every commit succeeds. So whoever commits looks at the names before and after.

The files are looked at by their names, with `lstat`, and never opened: closing a file drops all POSIX locks that the
process has on it, SQLite's too.
"""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trio_agentmail.errors import JournalError

__all__ = ["FileWatch", "files_of", "make_private", "refuse_links"]

LONG_LOG = 64 * 2**20
"""Bytes of write-ahead log, above which somebody must be keeping it from starting over. (It does every 4 MB.)"""

OTHERS = stat.S_IRWXG | stat.S_IRWXO
WATCHES_CONTENT = os.name != "nt"
"""Windows may set a file's time long after it was written."""

logger = logging.getLogger("trio_agentmail")


def files_of(path: Path) -> list[Path]:
    """The journal's files: the database, the write-ahead log, its index, and the lock."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-lock")]


class FileWatch:
    """What the files were when the journal was opened, and when it was last written."""

    def __init__(self, path: Path) -> None:
        """Look at the files, which all exist.

        Raises:
            JournalError: one of them does not.
        """
        self._path = path
        self._files = files_of(path)
        self._found: list[os.stat_result] | None = None
        self._identities: list[tuple[int, int]] | None = None
        self._warned_of_names = self._warned_of_log = False
        self._look()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The block writes to the files. It may report success only if this ends without an exception.

        Raises:
            JournalError: a file was removed or replaced, before the block or while it wrote, or somebody else has
                written to it since the last such block.
        """
        before = self._found
        self._look()
        if before is not None and WATCHES_CONTENT:
            self._check_content(before)
        self._found = None  # what an exception leaves behind is ours too
        yield
        self._look()
        self._warn()

    def _look(self) -> None:
        try:
            found = [os.lstat(file) for file in self._files]
        except OSError as exc:
            raise self._moved(f"{exc.filename}: {exc.strerror}") from None
        identities = [(status.st_dev, status.st_ino) for status in found]
        for file, now, before in zip(self._files, identities, self._identities or identities, strict=True):
            if now != before:
                raise self._moved(f"{file} is another file now")
        self._found, self._identities = found, identities

    def _moved(self, what: str) -> JournalError:
        return JournalError(
            f"the journal {self._path} was removed, renamed or replaced while it was open ({what}): nothing more is "
            "written, since it would be lost. End the stream before you move, remove or restore its files"
        )

    def _check_content(self, before: list[os.stat_result]) -> None:
        assert self._found is not None
        for file, then, now in list(zip(self._files, before, self._found, strict=True))[:2]:  # database and log
            if (then.st_size, then.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
                self._found = before
                raise JournalError(
                    f"another program has written to {file} while the journal was open, so what is in it is uncertain: "
                    "nothing more is written. End the stream before you restore or change its files"
                )

    def _warn(self) -> None:
        assert self._found is not None
        names = max(status.st_nlink for status in self._found)
        if names > 1 and not self._warned_of_names:
            logger.warning(
                "a file of the journal %s has a second name (a hard link): remove that name, or the journal cannot be "
                "opened again",
                self._path,
            )
        self._warned_of_names = names > 1
        size = self._found[1].st_size
        if size > LONG_LOG and not self._warned_of_log:
            logger.warning(
                "the write-ahead log of the journal %s has grown to %d MiB: another program has been reading the "
                "journal for long, which keeps the log from starting over",
                self._path,
                size // 2**20,
            )
        self._warned_of_log = size > LONG_LOG


def refuse_links(path: Path) -> None:
    """Make sure that each file of the journal has one name, as far as it exists.

    The write-ahead log and the lock stand beside a name. Opened by two names, a journal has two logs, of which the one
    overwrites what the other has brought into the file, and two locks.

    Raises:
        JournalError: one has more.
    """
    for file in files_of(path):
        with suppress(OSError):  # whoever opens it tells what is the matter
            status = os.lstat(file)
            if stat.S_ISLNK(status.st_mode):
                raise JournalError(f"{file} is a symbolic link: the files of a journal are in one directory; remove it")
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                raise JournalError(
                    f"{file} has {status.st_nlink} names (hard links), and opened by two of them a journal is damaged: "
                    f"remove the others, or replace it by a copy; `find -samefile {file}` finds them"
                )


def make_private(path: Path) -> None:
    """Take the files' permissions from everybody but their owner. What cannot be changed is a WARNING."""
    if os.name == "nt":  # pragma: no cover  permissions are inherited from the directory
        return
    for file in files_of(path):
        mode = os.lstat(file).st_mode
        if mode & OTHERS:
            with suppress(OSError):
                os.chmod(file, stat.S_IMODE(mode) & ~OTHERS)
            if os.lstat(file).st_mode & OTHERS:
                logger.warning("others may open %s, which holds mail, and its mode cannot be changed", file)
