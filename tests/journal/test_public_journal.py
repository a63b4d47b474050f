"""`Journal` can be implemented from public names alone."""

import ast
import typing
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
import trio_agentmail.journal
from tests.helpers import public_journal
from tests.helpers.public_journal import PublicJournal
from trio_agentmail import (
    Disconnected,
    Event,
    Journal,
    JournalMismatchError,
    MessageReceivedEvent,
    Subscribe,
    Subscribed,
    open_agentmail_session,
    open_agentmail_stream,
)
from trio_agentmail.journal import Kept, KeptIdentity
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


def test_the_implementation_uses_nothing_private() -> None:
    imported: list[str] = []
    used: list[ast.Attribute] = []
    for node in ast.walk(ast.parse(Path(public_journal.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            imported.append(node.module or "")
        if isinstance(node, ast.ImportFrom | ast.Import):
            imported += [alias.name for alias in node.names]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            used.append(node)
    assert "trio_agentmail.journal" in imported
    assert not [name for name in imported if "._" in f".{name}"]
    assert not [ast.unparse(node) for node in used if ast.unparse(node.value) != "self"]


def classes(annotation: Any) -> set[Any]:
    """The classes of this package in an annotation."""
    if isinstance(annotation, list):  # the parameters of a Callable
        return set().union(*map(classes, annotation))
    if isinstance(annotation, type) and annotation.__module__.startswith("trio_agentmail"):
        return {annotation}
    return set().union(*map(classes, typing.get_args(annotation)))


def classes_in_signatures() -> set[Any]:
    members = [member for name, member in vars(Journal).items() if not name.startswith("_")]
    functions = [member.fget if isinstance(member, property) else member for member in members]
    hints = [typing.get_type_hints(documented) for documented in (*functions, Kept, KeptIdentity)]
    return {cls for hint in hints for annotation in hint.values() for cls in classes(annotation)}


def test_every_type_in_the_signatures_is_public() -> None:
    public = [
        getattr(module, name)
        for module in (trio_agentmail, trio_agentmail.events, trio_agentmail.journal)
        for name in module.__all__
    ]
    found = classes_in_signatures()
    assert found > {Kept, KeptIdentity, Disconnected, MessageReceivedEvent}
    assert not [cls for cls in found if cls not in public]


def subjects(events: list[Event]) -> list[str | None]:
    """The subjects of mail, and the class names of everything else."""
    return [
        event.message.subject if isinstance(event, MessageReceivedEvent) else type(event).__name__ for event in events
    ]


async def test_events_that_were_not_acknowledged_are_delivered_at_the_next_start(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    journal: Journal = PublicJournal()
    got: list[Event] = []
    async with open_agentmail_stream(backend=fake, journal=journal) as events:
        for number in range(3):
            await fake.deliver(inbox_id=INBOX, subject=str(number))
        while len(subjects(got)) < 4:
            got.append(await events.receive())
        await journal.ack(got[0])
        await journal.ack(got[1])
        async with journal.processing(got[2]):
            pass
    assert subjects(got) == ["Subscribed", "0", "1", "2"]
    got.clear()
    await fake.deliver(inbox_id=INBOX, subject="missed")
    async with open_agentmail_stream(backend=fake, journal=journal) as events:
        while "missed" not in subjects(got):
            got.append(await events.receive())
    mails = [event for event in got if isinstance(event, MessageReceivedEvent)]
    assert [(mail.message.subject, mail.origin) for mail in mails] == [("2", "redelivered"), ("missed", "recovered")]


async def test_reading_waits_while_too_many_events_are_pending(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    journal = PublicJournal(max_pending=2)
    async with open_agentmail_stream(backend=fake, journal=journal, recovery=None) as events:
        for number in range(4):
            await fake.deliver(inbox_id=INBOX, subject=str(number))
        await wait_all_tasks_blocked()
        got = [await events.receive() for _ in range(3)]
        await wait_all_tasks_blocked()
        assert subjects(got) == ["Subscribed", "0", "1"]
        assert events.statistics().current_buffer_used == 0
        await journal.ack(got[1])
        assert subjects([await events.receive()]) == ["2"]


async def test_gaps_are_merged_while_the_consumer_sleeps(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, journal=PublicJournal(), recovery=None, buffer_size=1) as events:
        for _ in range(3):
            await fake.drop_connections()
            await fake.wait_subscribed()
        got = [await events.receive() for _ in range(3)]
        assert [type(event) for event in got] == [Subscribed, Disconnected, Subscribed]


async def test_it_belongs_to_the_subscription_that_is_in_force(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    journal = PublicJournal()
    other = Subscribe(inbox_ids=[INBOX])
    async with open_agentmail_session(backend=fake, journal=journal) as session:
        await session.subscribe(other)
    async with open_agentmail_stream(other, backend=fake, journal=journal):
        pass
    with pytest.raises(JournalMismatchError):
        async with open_agentmail_stream(backend=fake, journal=journal):
            raise AssertionError
