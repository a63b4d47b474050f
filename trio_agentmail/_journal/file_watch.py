"""Checks that the files of an open journal have not been replaced, and that no other program writes to them.

SQLite does not notice when a file that it has open is removed, renamed or replaced. It continues to write to the old
file, and every commit succeeds. So the paths are checked before and after each commit.

They are checked with `lstat` and never opened, because closing a file drops all POSIX locks that the process has on it,
including SQLite's.
"""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trio_agentmail.errors import JournalError

__all__ = ["FileWatch", "check_files", "files_of", "make_private"]

LONG_LOG = 64 * 2**20
"""Size of the write-ahead log in bytes above which a warning is logged.

SQLite starts the log over every 4 MB, unless another program keeps reading from it.
"""

OTHERS = stat.S_IRWXG | stat.S_IRWXO
WATCHES_CONTENT = os.name != "nt"
"""False on Windows, which may update a file's modification time long after a write."""

logger = logging.getLogger("trio_agentmail")


def files_of(path: Path) -> list[Path]:
    """Return the paths of the journal's files: the database, the write-ahead log, its index, and the lock."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-lock")]


class FileWatch:
    """Compares the status of the files with that at opening and after the last write."""

    def __init__(self, path: Path) -> None:
        """Record the status of the files.

        Raises:
            JournalError: One of them does not exist.
        """
        self._path = path
        self._files = files_of(path)
        self._warned_of_names = self._warned_of_log = False
        self._opened = self._statuses()
        self._written: list[os.stat_result] | None = self._opened
        """The status after the last `writing`. None after an exception, since the changes may then be ours."""

    def check(self) -> None:
        """Check that the files are as the last `writing` left them.

        Raises:
            JournalError: A file was removed or replaced, or another program has written to one.
        """
        found = self._look()
        if self._written is not None and WATCHES_CONTENT:
            self._check_content(self._written, found)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Return a context manager for a block that writes to the files.

        The block has succeeded only if the context manager exits without an exception.

        Raises:
            JournalError: See `check`; or a file was removed or replaced during the block.
        """
        self.check()
        self._written = None
        yield
        self._written = self._look()
        self._warn(self._written)

    def _statuses(self) -> list[os.stat_result]:
        try:
            return [os.lstat(file) for file in self._files]
        except OSError as exc:
            raise self._moved(f"{exc.filename}: {exc.strerror}") from exc

    def _look(self) -> list[os.stat_result]:
        found = self._statuses()
        for file, now, opened in zip(self._files, found, self._opened, strict=True):
            if not os.path.samestat(now, opened):
                raise self._moved(f"{file} is another file now")
        return found

    def _moved(self, what: str) -> JournalError:
        return JournalError(
            f"the journal {self._path} was removed, renamed or replaced while it was open ({what}): nothing more is "
            "written, since it would be lost. End the stream before you move, remove or restore its files"
        )

    def _check_content(self, before: list[os.stat_result], now: list[os.stat_result]) -> None:
        for file, then, found in zip(self._files[:2], before[:2], now[:2], strict=True):  # the database and its log
            if (then.st_size, then.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                raise JournalError(
                    f"another program has written to {file} while the journal was open, so its content is uncertain: "
                    "nothing more is written. End the stream before you restore or change its files"
                )

    def _warn(self, found: list[os.stat_result]) -> None:
        second_name = any(status.st_nlink > 1 for status in found)
        if second_name and not self._warned_of_names:
            logger.warning(
                "a file of the journal %s has a second name (a hard link): remove that name, or the journal cannot be "
                "opened again",
                self._path,
            )
        self._warned_of_names = second_name
        log_size = found[1].st_size
        if log_size > LONG_LOG and not self._warned_of_log:
            logger.warning(
                "the write-ahead log of the journal %s has grown to %d MiB: another program has been reading the "
                "journal for a long time, which keeps the log from starting over",
                self._path,
                log_size // 2**20,
            )
        self._warned_of_log = log_size > LONG_LOG


def check_files(path: Path) -> None:
    """Check that each of the journal's files, if it exists, is a regular file with a single name.

    The names of the lock and the write-ahead log are derived from the name of the database. A journal that is opened
    by two names has two locks and two logs, and each log overwrites what the other has written to the database.

    Raises:
        JournalError: A file is not a regular file, or has a second name.
    """
    for file in files_of(path):
        try:
            status = os.lstat(file)
        except OSError:
            continue  # creating or opening it will raise a better error
        if stat.S_ISLNK(status.st_mode):
            raise JournalError(f"{file} is a symbolic link: the files of a journal are in one directory; remove it")
        if not stat.S_ISREG(status.st_mode):
            raise JournalError(f"the journal {path} cannot be opened: {file} is not a regular file")
        if status.st_nlink > 1:
            raise JournalError(
                f"{file} has {status.st_nlink} names (hard links), and a journal opened by two names gets damaged: "
                f"remove the others (`find -samefile {file}` finds them), or replace it by a copy"
            )


def make_private(path: Path) -> None:
    """Remove all permissions of users other than the files' owner. Log a WARNING if that is not possible."""
    if os.name == "nt":  # pragma: no cover  permissions are inherited from the directory
        return
    for file in files_of(path):
        mode = os.lstat(file).st_mode
        if mode & OTHERS:
            with suppress(OSError):
                os.chmod(file, stat.S_IMODE(mode) & ~OTHERS)
            if os.lstat(file).st_mode & OTHERS:
                logger.warning("other users may open %s, which contains mail, and its mode cannot be changed", file)
