"""Calls that cannot work say what to do instead."""

import copy
import gc
import inspect
import logging
import pickle
import pydoc
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, get_type_hints

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_agentmail
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import (
    JournalMismatchError,
    MessageReceivedEvent,
    ReconnectPolicy,
    SQLiteJournal,
    Subscribe,
    Subscribed,
)
from trio_agentmail.testing import FakeAgentMail, make_event

INBOX = "agent@agentmail.to"


# Arguments

openers = pytest.mark.parametrize(
    "opener", [trio_agentmail.open_agentmail_stream, trio_agentmail.open_agentmail_session]
)


async def test_a_session_is_not_iterated_over(autojump_clock: MockClock) -> None:
    async with open_agentmail_session(backend=FakeAgentMail()) as session:
        with pytest.raises(TypeError, match=r"async for event in session\.events"):
            async for _ in session:  # type: ignore[attr-defined]
                pytest.fail("it was")


@openers
async def test_a_stream_must_be_entered_with_async_with(opener: Callable[..., Any]) -> None:
    words = rf"{opener.__name__}\(…\) must be entered: async with {opener.__name__}\(…\) as"
    with pytest.raises(TypeError, match=words):
        async for _ in opener(backend=FakeAgentMail()):
            pytest.fail("it was iterated over")
    with pytest.raises(TypeError, match=words):
        with opener(backend=FakeAgentMail()):
            pytest.fail("it was entered")
    with pytest.raises(TypeError, match=words):
        await opener(backend=FakeAgentMail())
    with pytest.raises(TypeError, match=words):
        list(opener(backend=FakeAgentMail()))


async def test_filters_belong_to_another_subscription_as_well(autojump_clock: MockClock) -> None:
    async with open_agentmail_session(backend=FakeAgentMail()) as session:
        with pytest.raises(
            TypeError, match=r"inbox_ids belongs to the subscription: subscribe\(Subscribe\(inbox_ids=…"
        ):
            await session.subscribe(inbox_ids=[INBOX])  # type: ignore[call-arg]


@pytest.mark.parametrize("opener", [open_agentmail_stream, open_agentmail_session])
@pytest.mark.parametrize("name", ["inbox_ids", "pod_ids", "event_types"])
def test_filters_belong_to_the_subscription(opener: Callable[..., Any], name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"{name} belongs to the subscription: open_agentmail_\w+\(Subscribe\({name}=…"
    ):
        opener(**{name: [INBOX]})


@openers
def test_an_argument_that_does_not_exist_is_named(opener: Callable[..., Any]) -> None:
    with pytest.raises(
        TypeError, match=rf"^{opener.__name__}\(\) got an unexpected keyword argument 'retries'$"
    ) as caught:
        opener(retries=5)
    assert caught.value.__context__ is None


@openers
def test_an_argument_too_many_is_counted(opener: Callable[..., Any]) -> None:
    words = rf"^{opener.__name__}\(\) takes from 0 to 1 positional arguments but 2 were given$"
    with pytest.raises(TypeError, match=words):
        opener(Subscribe(), "am_key")


# The parameters are written once, in open_agentmail_session.


@openers
def test_help_shows_all_parameters(opener: Callable[..., Any]) -> None:
    shown = pydoc.plain(pydoc.render_doc(opener))
    for name, default in [
        ("ping_interval", "20.0"),
        ("enter_timeout", "30.0"),
        ("max_message_size", "16777216"),
        ("journal", "None"),
    ]:
        assert re.search(rf"\b{name}: [^=]* = {default}", shown), name
    assert f"{opener.__name__}(subscribe: " in shown
    assert "AbstractAsyncContextManager[" in shown
    assert (opener.__doc__ or "").split()[0] in shown


def test_the_signatures_differ_in_what_is_yielded_alone() -> None:
    stream, session = (
        inspect.signature(opener)
        for opener in (trio_agentmail.open_agentmail_stream, trio_agentmail.open_agentmail_session)
    )
    assert stream.parameters == session.parameters
    assert len(stream.parameters) == 16
    assert session.return_annotation == AbstractAsyncContextManager[trio_agentmail.AgentMailSession]
    assert stream.return_annotation == AbstractAsyncContextManager[trio.MemoryReceiveChannel[trio_agentmail.Event]]
    hints = get_type_hints(trio_agentmail.open_agentmail_stream)
    assert hints == get_type_hints(trio_agentmail.open_agentmail_session) | {"return": stream.return_annotation}


def test_the_stream_describes_each_of_its_parameters() -> None:
    documented = re.findall(r"^        (\w+): ", (trio_agentmail.open_agentmail_stream.__doc__ or ""), re.MULTILINE)
    assert set(inspect.signature(trio_agentmail.open_agentmail_stream).parameters) <= set(documented)


async def fetch_key() -> str:
    pytest.fail("it was called")


class Fetcher:
    async def __call__(self) -> str:
        return "am_key"


@pytest.mark.parametrize("key", [fetch_key, Fetcher(), lambda: trio.Event()], ids=["function", "object", "no key"])
async def test_an_api_key_callable_is_not_async(key: Any, autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError, match=r"this function is async: fetch the key in a task|not Event"):
        async with open_agentmail_stream(backend=FakeAgentMail(), api_key=key):
            pytest.fail("entered")
    gc.collect()  # a coroutine that nobody awaited would be a warning, and so an error


class Future:
    def __await__(self) -> Any:
        yield


async def test_an_api_key_callable_returns_nothing_to_be_awaited(autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError, match="this function is async"):
        async with open_agentmail_stream(backend=FakeAgentMail(), api_key=Future):  # type: ignore[arg-type]
            pytest.fail("entered")


# Journals


async def test_what_one_journal_gave_is_not_acknowledged_in_another(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Not even if the other one has the same mail: it has not been handled there."""
    fake = FakeAgentMail()
    one, other = SQLiteJournal(tmp_path / "one.db"), SQLiteJournal(tmp_path / "other.db")
    async with (
        open_agentmail_stream(backend=fake, journal=one) as events,
        open_agentmail_stream(backend=fake, journal=other) as others,
    ):
        await fake.deliver(inbox_id=INBOX)
        await fake.send_raw("not JSON")
        for stream in (events, others):
            assert isinstance(await stream.receive(), Subscribed)
        for _ in range(2):
            mail, same = await events.receive(), await others.receive()
            with pytest.raises(
                JournalMismatchError, match=r"came from the journal .*one\.db: acknowledge it there, not in .*other\.db"
            ):
                await other.ack(mail)
            with pytest.raises(JournalMismatchError):
                async with other.processing(mail):
                    pytest.fail("entered")
            await one.ack(mail)
            await one.ack(mail)
            await other.ack(same)


@pytest.mark.parametrize(
    "copied",
    [attrs.evolve, copy.copy, lambda event: pickle.loads(pickle.dumps(event))],
    ids=["evolve", "copy", "pickle"],
)
async def test_a_copy_is_not_acknowledged_in_another_journal_either(
    copied: Callable[[Any], Any], tmp_path: Path, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    one, other = SQLiteJournal(tmp_path / "one.db"), SQLiteJournal(tmp_path / "other.db")
    async with open_agentmail_stream(backend=fake, journal=one) as events:
        await fake.deliver(inbox_id=INBOX)
        assert isinstance(await events.receive(), Subscribed)
        mail = copied(await events.receive())
        async with open_agentmail_stream(backend=fake, journal=other):
            with pytest.raises(
                JournalMismatchError, match=r"came from the journal .*one\.db: acknowledge it there, not in .*other\.db"
            ):
                await other.ack(mail)
            await one.ack(mail)
            await one.ack(mail)
            await other.ack(mail)


async def test_an_event_belongs_to_the_file_and_not_to_the_object(tmp_path: Path, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, journal=SQLiteJournal(tmp_path / "agent.db")) as events:
        assert isinstance(await events.receive(), Subscribed)
        await fake.deliver(inbox_id=INBOX)
        mail = await events.receive()
    again = SQLiteJournal(tmp_path / "agent.db")
    async with open_agentmail_stream(backend=fake, journal=again) as events:
        await again.ack(mail)
    async with open_agentmail_stream(backend=fake, journal=again) as events:
        await trio.sleep(1)
        assert isinstance(await events.receive(), Subscribed)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


async def test_what_no_journal_gave_is_not_complained_of(tmp_path: Path, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db")
    async with open_agentmail_stream(backend=fake, journal=journal) as events:
        notice = await events.receive()
        for event in (notice, make_event(MessageReceivedEvent)):
            await journal.ack(event)
            async with journal.processing(event):
                pass


@pytest.mark.parametrize("thing", [None, "evt_1", FakeAgentMail()])
async def test_what_is_no_event_is_a_type_error(thing: Any, tmp_path: Path, autojump_clock: MockClock) -> None:
    journal = SQLiteJournal(tmp_path / "agent.db")
    async with open_agentmail_stream(backend=FakeAgentMail(), journal=journal) as events:
        mail = await events.receive()
        for wrong in (thing, getattr(mail, "message", thing)):
            with pytest.raises(TypeError, match=f"from its stream, not {type(wrong).__name__}"):
                await journal.ack(wrong)
            with pytest.raises(TypeError):
                async with journal.processing(wrong):
                    pytest.fail("entered")


async def test_a_journal_says_so_when_it_is_called_from_another_run_or_thread(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def process() -> None:
        async with journal.processing(notice):
            pytest.fail("entered")

    journal = SQLiteJournal(tmp_path / "agent.db")
    async with open_agentmail_stream(backend=FakeAgentMail(), journal=journal) as events:
        notice = await events.receive()
        for call in (partial(journal.ack, notice), process, journal.dead_letters):
            with pytest.raises(RuntimeError, match=r"was called outside of the trio\.run\(\)"):
                await trio.to_thread.run_sync(trio.run, call)
        with pytest.raises(RuntimeError, match=r"processing\(\) was called outside"):
            await trio.to_thread.run_sync(journal.processing, notice)


async def test_the_warning_of_a_full_journal_names_the_types_that_wait(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a handler acknowledges mail and nothing else."""
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db", max_pending=10)
    async with open_agentmail_stream(backend=fake, journal=journal) as events:
        for number in range(7):
            await fake.send_raw(f'{{"type":"event","event_type":"message.type{number % 6}","event_id":"{number}"}}')
        for _ in range(20):
            await fake.deliver(inbox_id=INBOX)
        with trio.move_on_after(10):
            async for event in events:
                if isinstance(event, MessageReceivedEvent) and len(caplog.records) == 0:
                    await journal.ack(event)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "10 events in the journal are unacknowledged (max_pending), and no more are read until some are acknowledged: "
        "3 message.received, 2 message.type0, 1 message.type1, 1 message.type2, 1 message.type3, …; "
        "events of every type need ack() or processing()"
    )


# Async generators


GENERATOR = """
    import logging, sys
    import trio
    from trio_agentmail import SQLiteJournal, open_agentmail_stream
    from trio_agentmail.testing import FakeAgentMail

    fake = FakeAgentMail()
    journal = SQLiteJournal(sys.argv[1]) if len(sys.argv) > 1 else None

    async def mails():
        async with open_agentmail_stream(backend=fake, journal=journal) as events:
            async for event in events:
                yield event

    async def main():
        {how}
        await trio.sleep(0.1)
        print("the program goes on as if nothing had happened")

    logging.basicConfig(format="%(message)s")
    trio.run(main)
"""
BREAK = "async for _ in mails(): break"


@pytest.mark.parametrize(
    ("how", "with_journal"),
    [
        (BREAK, False),
        ("it = mails(); await anext(it); del it", False),
        (BREAK, True),
    ],
    ids=["break", "del", "break, with a journal"],
)
def test_a_stream_in_an_async_generator_that_is_abandoned_is_an_error(
    how: str, with_journal: bool, tmp_path: Path
) -> None:
    """The program runs in a process of its own, because it corrupts Trio's state."""
    arguments = [str(tmp_path / "agent.db")] if with_journal else []
    program = dedent(GENERATOR).format(how=how)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "goes on" not in done.stdout
    assert "a stream was left in a different task than it was entered in" in done.stderr
    assert "contextlib.aclosing" in done.stderr
    assert "TrioInternalError" not in done.stderr


async def test_the_end_and_aclosing_leave_a_stream_in_an_async_generator_in_peace(autojump_clock: MockClock) -> None:
    from contextlib import aclosing

    async def mails() -> AsyncIterator[object]:
        async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy()) as events:
            async for event in events:
                yield event

    fake = FakeAgentMail()
    async with aclosing(mails()) as closing:  # type: ignore[type-var]
        async for _ in closing:
            break
    assert fake.record.close_codes == [1000]


async def test_subscribe_takes_a_subscribe(autojump_clock: MockClock) -> None:
    async with open_agentmail_session(backend=FakeAgentMail()) as session:
        with pytest.raises(TypeError, match="takes a Subscribe, not list"):
            await session.subscribe([INBOX])  # type: ignore[arg-type]
        await session.subscribe(Subscribe(inbox_ids=[INBOX]))
