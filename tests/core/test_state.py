"""The state, the statistics and the log lines of a session."""

import logging
from datetime import timedelta

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.reading import A, B, mail, take, take_all, time_of_day, waits
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import ApiError, ErrorEvent, ReconnectPolicy, Subscribe
from trio_agentmail.testing import FakeAgentMail


async def test_the_state_tells_where_in_its_life_the_stream_is(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:

        def state() -> str:
            return session.state

        assert state() == "subscribed"
        fake.faults.hang_handshakes()
        await fake.drop_connections()
        await trio.sleep(0.2)
        assert state() == "waiting"
        assert session.statistics().next_attempt_in == pytest.approx(0.3)
        await trio.sleep(0.4)
        assert state() == "connecting"
        assert session.statistics().next_attempt_in is None
        await trio.sleep(10)
        assert state() == "waiting"
        assert session.statistics().next_attempt_in == pytest.approx(0.9)
        await trio.sleep(1)
        assert state() == "subscribed"
        assert session.statistics().next_attempt_in is None
    assert state() == "closed"


async def test_the_state_is_closed_when_the_block_ends_by_an_error(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ApiError):
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.reject_handshakes(402, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert session.state == "closed"


async def test_statistics_count_what_came_and_what_was_made_of_it(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        empty = session.statistics()
        assert (empty.connections, empty.received, empty.delivered, empty.duplicates, empty.unknown) == (1, 0, 0, 0, 0)
        assert (empty.buffered, empty.last_error, empty.next_attempt_in) == (1, None, None)
        event = await fake.deliver(inbox_id="a")
        await fake.emit(event)
        await fake.send_raw("not JSON")
        await fake.send_raw('{"type":"event","event_type":"message.telepathic"}')
        await fake.emit(ErrorEvent(name="rate_limit"))
        await fake.drop_connections(1012, "service restart")
        await fake.wait_subscribed()
        await fake.emit(event)
        await wait_all_tasks_blocked()
        full = session.statistics()
        assert (full.connections, full.received, full.delivered, full.duplicates, full.unknown) == (2, 6, 4, 2, 2)
        assert full.buffered == 7
        assert full.last_error is not None
        assert "service restart" in full.last_error
        await take(session.events, 5)
        assert session.statistics().buffered == 2
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            full.received = 0  # type: ignore[misc]


async def test_statistics_tell_the_last_sign_of_life_and_the_last_error(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_session(backend=fake, ping_interval=None) as session:
        assert session.statistics().last_received == began
        await trio.sleep(100)
        await mail(fake, "1")
        await trio.sleep(20)
        assert session.statistics().last_received == began + timedelta(seconds=100)
        fake.faults.reject_handshakes(503, body=b"come\x1b[31m back\r\nlater", times=None)
        await fake.drop_connections()
        await trio.sleep(20)
        outage = session.statistics()
        assert outage.last_received == began + timedelta(seconds=100)
        assert outage.last_error == "ApiError: HTTP status 503: come [31m back later"


async def test_a_healthy_stream_shows_no_error_of_the_past(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_session(backend=fake, ping_interval=None) as session:
        assert (session.statistics().last_error, session.statistics().last_error_at) == (None, None)
        await trio.sleep(100)
        await fake.drop_connections(1012, "service restart")
        await trio.sleep(20)
        recent = session.statistics()
        assert session.state == "subscribed"
        assert "service restart" in (recent.last_error or "")
        assert recent.last_error_at == began + timedelta(seconds=100)
        await trio.sleep(20)
        assert (session.statistics().last_error, session.statistics().last_error_at) == (None, None)
        fake.faults.reject_handshakes(503, times=None)
        with trio.move_on_after(40):
            await session.subscribe(Subscribe(inbox_ids=["a"]))
        assert "503" in (session.statistics().last_error or "")
        await trio.sleep(40)
        assert session.statistics().last_error is None
        await fake.drop_connections()
        await trio.sleep(100)
        assert "503" in (session.statistics().last_error or "")


async def test_each_change_of_state_is_one_line_of_log(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_agentmail")
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503)
    async with open_agentmail_stream(backend=fake, api_key="am_secret") as events:
        await mail(fake, "private")
        fake.faults.reject_handshakes(503)
        await fake.drop_connections(1012, "service restart")
        assert await take(events, 4) == "S private D S"
    records = [record for record in caplog.records if record.name == "trio_agentmail"]
    assert {record.levelname for record in records} == {"INFO"}
    texts = [record.getMessage() for record in records]
    assert [text.split()[0] for text in texts] == [
        *("connecting", "waiting", "connecting", "subscribed"),
        *("waiting", "connecting", "waiting", "connecting", "subscribed", "closed"),
    ]
    assert "0.5 s" in texts[1]
    assert "503" in texts[1]
    assert "service restart" in texts[4]
    assert "am_secret" not in caplog.text
    assert "private" not in caplog.text


async def test_each_outage_that_lasts_is_one_warning(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    warnings = []
    async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(stable_after=0)) as events:
        assert await take(events, 1) == "S"
        for failures in (5, 9, 20):  # subscribed again 31.5, 151.5 and 481.5 s after the loss
            caplog.clear()
            fake.faults.reject_handshakes(503, times=failures)
            await fake.drop_connections()
            assert await take(events, 2) == "D S"
            warnings.append([record.getMessage() for record in caplog.records if record.levelname == "WARNING"])
    assert warnings[0] == []
    assert len(warnings[1]) == len(warnings[2]) == 1
    assert "503" in warnings[1][0]


async def test_a_server_that_keeps_dropping_is_a_warning_too(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        fake.faults.drop_after_confirming(times=20)
        await fake.drop_connections()
        await trio.sleep(1_000)
        assert await take_all(events) == "S D S"
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "cut" in warning


async def test_an_outage_is_a_warning_after_a_minute_also_between_attempts(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake):
        fake.faults.reject_handshakes(503, headers=[("Retry-After", "3000")])
        await fake.drop_connections()
        await trio.sleep(59)
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []
        await trio.sleep(2)
        [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "503" in warning


async def test_a_new_subscription_inherits_how_long_the_old_one_has_been_in_force(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, times=4)
    async with open_agentmail_session(A, backend=fake) as session:
        await trio.sleep(3600)
        await session.subscribe(B)
        await trio.sleep(5)
        await fake.drop_connections()
        await trio.sleep(5)
        assert session.state == "subscribed"
    assert waits(fake)[-1] == 5.5  # the first wait, since a subscription was in force for an hour
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
