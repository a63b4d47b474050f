"""Slow work is done once in a process: imports, a TLS context, and generating the decoding functions."""

import itertools
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
from tests.helpers.modules import fresh_copy
from tests.helpers.rest_api import settings
from trio_agentmail import AgentMailEnvironment, MessageReceivedEvent, open_agentmail_stream
from trio_agentmail import _decoders as decoders
from trio_agentmail import _first_use as first_use
from trio_agentmail._codec import decoded_classes
from trio_agentmail._network import NetworkBackend
from trio_agentmail.testing import FakeAgentMail

ROOT = Path(__file__).parents[2]
PLAIN = AgentMailEnvironment(http="http://localhost:1", websockets="ws://localhost:1")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the module to its state before the first stream of a process."""
    monkeypatch.setattr(first_use, "_done", set())
    monkeypatch.setattr(decoders, "_remaining", None)


@pytest.fixture
def steps(fresh: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Record the steps that are taken, and whether each was in another thread."""
    taken: list[tuple[str, bool]] = []

    def step(name: str) -> Callable[[], None]:
        return lambda: taken.append((name, threading.current_thread() is not threading.main_thread()))

    for name in ("_import_stream", "_import_httpx2", "_make_tls_context"):
        monkeypatch.setattr(first_use, name, step(name))
    return taken


def names(steps: list[tuple[str, bool]]) -> list[str]:
    return [name for name, _ in steps]


# Imports


def imported_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_openers_does_not_import_http_sqlite_recovery_or_asyncio() -> None:
    imported = imported_by("from trio_agentmail import open_agentmail_stream")
    ours = {"trio_agentmail._recovery.recoverer", "trio_agentmail._supervisor", "trio_agentmail._journal.sqlite_store"}
    assert not imported & ({"httpx", "httpx2", "sqlite3", "cattrs", "asyncio"} | ours)


def test_the_package_alone_imports_none_of_its_modules_and_no_dependency() -> None:
    imported = imported_by("import trio_agentmail")
    assert not imported & {"trio", "attrs", "cattrs", "httpx2", "orjson", "wsproto"}
    assert {name for name in imported if name.startswith("trio_agentmail.")} == set()


def test_the_journal_is_imported_when_it_is_first_used() -> None:
    assert "sqlite3" in imported_by("from trio_agentmail import SQLiteJournal")
    assert "sqlite3" in imported_by("import trio_agentmail; trio_agentmail.DeadLetter")


def test_the_root_hands_out_the_names_of_its_modules_and_no_others() -> None:
    root = fresh_copy("trio_agentmail")
    assert set(root.__all__) & vars(root).keys() == {"__version__"}
    assert set(root.__all__) <= set(dir(root))
    for name in {*root.__all__, "errors", "events", "journal"} - {"__version__"}:
        assert getattr(root, name) is getattr(trio_agentmail, name)
    assert set(root.__all__) <= vars(root).keys()
    with pytest.raises(AttributeError, match="module 'trio_agentmail' has no attribute 'SqliteJournal'"):
        trio_agentmail.SqliteJournal  # type: ignore[attr-defined]  # noqa: B018


async def test_on_the_network_the_slow_work_is_done_once_in_a_thread(steps: list[tuple[str, bool]]) -> None:
    for _ in range(2):
        await first_use.import_in_thread(NetworkBackend(), settings(), with_recovery=True)
    assert steps == [("_import_stream", True), ("_import_httpx2", True), ("_make_tls_context", True)]


async def test_only_what_the_stream_needs_is_done(steps: list[tuple[str, bool]]) -> None:
    own = settings(ssl_context=ssl.create_default_context())
    await first_use.import_in_thread(NetworkBackend(), own, with_recovery=False)
    assert names(steps) == ["_import_stream"]
    await first_use.import_in_thread(NetworkBackend(), settings(environment=PLAIN), with_recovery=False)
    assert names(steps) == ["_import_stream"]
    await first_use.import_in_thread(NetworkBackend(), settings(), with_recovery=True)
    assert names(steps) == ["_import_stream", "_import_httpx2", "_make_tls_context"]


async def test_with_a_fake_no_thread_and_no_tls_context_is_used(
    steps: list[tuple[str, bool]], autojump_clock: MockClock
) -> None:
    await first_use.import_in_thread(FakeAgentMail(), settings(), with_recovery=True)
    assert steps == [("_import_stream", False), ("_import_httpx2", False)]


async def test_an_import_error_is_raised_as_itself_and_the_import_is_tried_again(
    fresh: None, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "httpx2", None)
        with pytest.raises(ImportError, match="httpx2"):
            async with open_agentmail_stream(backend=fake):
                raise AssertionError("not to be entered")
    async with open_agentmail_stream(backend=fake):
        pass


async def test_a_real_backend_gets_its_tls_context_made(fresh: None) -> None:
    from trio_agentmail._network import default_ssl_context

    default_ssl_context.cache_clear()
    await first_use.import_in_thread(NetworkBackend(), settings(), with_recovery=True)
    assert default_ssl_context.cache_info().currsize == 1


# The decoding functions


@pytest.fixture
def written(fresh: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the classes whose functions are requested."""
    asked_for: list[Any] = []
    monkeypatch.setattr(decoders, "hook_of", asked_for.append)
    return asked_for


def test_the_decoded_classes_are_complete_and_each_follows_its_parts() -> None:
    classes = decoded_classes()
    assert len(classes) == len(set(classes)) > 35
    assert classes.index(trio_agentmail.Message) < classes.index(MessageReceivedEvent)


async def test_the_functions_are_generated_one_class_per_checkpoint(
    written: list[Any], autojump_clock: MockClock
) -> None:
    seen = []

    async def other() -> None:
        while len(written) < len(decoded_classes()):
            seen.append(len(written))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(decoders.generate_step_by_step)
        nursery.start_soon(other)
    assert written == decoded_classes()
    assert all(later - earlier <= 2 for earlier, later in itertools.pairwise(seen))
    assert len(seen) >= len(written) // 2


async def test_the_first_stream_generates_the_functions_and_the_next_one_does_not(
    written: list[Any], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake):
        await wait_all_tasks_blocked()
        assert written == decoded_classes()
    async with open_agentmail_stream(backend=fake):
        await wait_all_tasks_blocked()
    assert written == decoded_classes()


async def test_a_stream_continues_where_an_earlier_one_stopped(written: list[Any], autojump_clock: MockClock) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await decoders.generate_step_by_step()
    assert len(written) == 1
    await decoders.generate_step_by_step()
    assert written == decoded_classes()


STEPS = """
import trio, trio.testing
from trio_agentmail import open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail
from tests.reliability.chaos.playing import reproducible

class Counting(trio.abc.Instrument):
    steps = 0
    def before_task_step(self, task):
        self.steps += 1

async def story():
    async with open_agentmail_stream(backend=FakeAgentMail()) as events:
        await events.receive()
        await trio.sleep(400)

for _ in range(3):
    counting = Counting()
    with reproducible(1):
        trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[counting])
    print(counting.steps)
"""


def test_on_a_mock_clock_the_first_stream_takes_as_many_steps_as_the_others() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 1
