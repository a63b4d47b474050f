"""Each event is delivered once, however often it is pushed."""

import attrs
import pytest
from trio.testing import MockClock

from tests.helpers.reading import mail, take_all
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import ErrorEvent, Subscribe
from trio_agentmail.testing import FakeAgentMail


async def test_the_same_mail_again_is_not_delivered_again(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        event = await fake.deliver(inbox_id="a", subject="once")
        await fake.emit(event)
        await fake.emit(attrs.evolve(event, event_id="another"))
        await fake.emit(attrs.evolve(event, message=attrs.evolve(event.message, subject="another")))
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.emit(event)
        await mail(fake, "other")
        assert await take_all(session.events) == "S once D S other"
        assert session.statistics().duplicates == 4


async def test_the_same_mail_as_spam_or_in_another_inbox_is_another_event(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    subscribe = Subscribe(event_types=["message.received", "message.received.spam"])
    async with open_agentmail_stream(subscribe, backend=fake) as events:
        for event_type in ("message.received", "message.received.spam", "message.received.spam"):
            await fake.deliver(inbox_id="a", event_type=event_type, message_id="<1@x>", event_id="1", subject="mail")
        await fake.deliver(inbox_id="b", message_id="<1@x>", event_id="1", subject="mail")
        assert await take_all(events) == "S mail mail mail"


async def test_an_event_that_is_no_mail_is_known_by_its_event_id(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        sent = '{"type":"event","event_type":"message.sent","event_id":"1","send":{"inbox_id":"a","subject":"%s"}}'
        await fake.send_raw(sent % "x")
        await fake.send_raw(sent % "y")
        await fake.send_raw(sent.replace('"1"', '"2"') % "x")
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.send_raw(sent % "x")
        assert await take_all(session.events) == "S message.sent message.sent D S"
        assert session.statistics().duplicates == 2


async def test_an_event_without_an_id_is_known_by_its_text(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        sent = '{"type":"event","event_type":"message.sent","send":{"inbox_id":"a"}}'
        for text in (sent, sent, sent + " ", "not JSON", "not JSON"):
            await fake.send_raw(text)
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.send_raw(sent)
        await fake.send_raw("not JSON")
        assert await take_all(session.events) == "S message.sent message.sent unknown None D S"
        assert session.statistics().duplicates == 4


async def test_complaints_of_the_server_are_never_the_same(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        await fake.emit(ErrorEvent(name="rate_limit", message="slow down"))
        await fake.emit(ErrorEvent(name="rate_limit", message="slow down"))
        assert await take_all(events) == "S error rate_limit error rate_limit"


async def test_the_memory_of_what_was_delivered_is_bounded(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 1)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 3)
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        mails = [await fake.deliver(inbox_id="a", subject=str(n)) for n in range(4)]
        for event in reversed(mails):
            await fake.emit(event)
        assert await take_all(events) == "S 0 1 2 3 0"
