"""Reading a journal does no harm to its files and to their consumer."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.journal_process import ROOT, SUFFIXES, child, command_of, posix, remove
from tests.helpers.sqlite_stores import NOW, SCOPE, add, open_store, pending
from trio_agentmail import JournalError
from trio_agentmail._journal import read_only as read_only_module
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import Bury


def test_a_journal_is_read_while_it_is_open_and_when_it_is_not(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, 3)
        store.apply([Bury(2, "ValueError: no", NOW)])
        pending, [dead] = read_journal(path)
        assert (pending, dead.id, dead.error) == (2, 2, "ValueError: no")
        add(store, 4)
        assert read_journal(path)[0] == 3
    assert read_journal(path)[0] == 3


def test_reading_creates_no_file(path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened"):
        read_journal(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("reader", "copied"), [("list", ("",)), ("list", ("-shm",)), ("list", SUFFIXES), ("show", SUFFIXES)], ids=str
)
def test_a_reader_does_no_harm_to_a_consumer_that_has_copied_its_files(
    path: Path, reader: str, copied: tuple[str, ...]
) -> None:
    ended = child("copy and die", path, reader, *copied)
    assert ended.returncode == 9, ended.stderr
    with open_store(path) as store:
        assert pending(store) == [1, 3, 4]
        assert store._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_reader_leaves_no_files_behind(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert read_journal(path) == (1, [])
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@posix
def test_a_reader_of_the_files_of_a_killed_process_changes_nothing_and_sees_all(path: Path) -> None:
    assert child("copy and die", path, "list").returncode == 9
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert "-wal" in "".join(before)
    assert read_journal(path)[0] == 3
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    remove("-shm", path)  # a copy without the index
    assert read_journal(path)[0] == 3


@posix
@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_journal_is_read_from_a_directory_and_file_that_may_only_be_read(state: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agent.db"
        if state == "closed":
            with open_store(path) as store:
                add(store, 1, 2, 3)
        else:
            child("copy and die", path, "list")
        nobody = ["65534"] if os.geteuid() == 0 else []  # root may write everywhere
        for file in Path(directory).iterdir():
            file.chmod(0o400)
            if nobody:
                os.chown(file, 65534, 65534)
        os.chmod(directory, 0o555)
        try:
            read = child("read", path, *nobody)
            assert read.stdout == "3\n", read.stderr
        finally:
            os.chmod(directory, 0o755)


def test_a_journal_that_is_opened_while_it_is_read_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        add(store, 1)
    read = read_only_module._read
    parameters = []

    def read_while_it_is_opened(path: Path, parameter: str, function: Any) -> Any:
        parameters.append(parameter)
        result = read(path, parameter, function)
        if parameters == ["immutable=1"]:
            consumer.append(SQLiteStore(path, SCOPE))
            add(consumer[0], 2)
        return result

    consumer: list[SQLiteStore] = []
    monkeypatch.setattr(read_only_module, "_read", read_while_it_is_opened)
    assert read_journal(path)[0] == 2
    assert (parameters[0], parameters[-1]) == ("immutable=1", "readonly_shm=1")
    consumer[0].close()


def test_a_reader_is_not_disturbed_by_consumers_that_open_and_close_the_journal(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
    with subprocess.Popen(command_of("read on", path), cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        number = 1
        while reader.poll() is None:
            with open_store(path) as store:
                number += 1
                add(store, number)
        seen = [int(line) for line in reader.stdout]
    assert reader.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert read_journal(path)[0] == number
