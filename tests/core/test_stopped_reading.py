"""A server that stops reading, and has taken no part of our last frame, does not delay anything."""

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, wait_all_tasks_blocked

from tests.helpers.streams import open_agentmail_stream
from tests.helpers.taking import taking
from tests.helpers.websocket_server import PING, PONG, TEXT, frame
from tests.helpers.wires import Tap, opcode, tap_client
from trio_agentmail import ConnectionFailedError
from trio_agentmail.testing import FakeAgentMail


class LeftOpen(Tap):
    """A server's end that stays open, so that cancelling the fake together with the client does not help the client."""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    client_end, server_end = lockstep_stream_pair()
    return client_end, LeftOpen(server_end)


def stops_reading_at(kind: int) -> tuple[FakeAgentMail, trio.Event]:
    """Return a fake that stops reading before a client's first frame of this kind, and an event for that moment."""
    fake, stopped = FakeAgentMail(), trio.Event()

    async def stop(data: bytes) -> None:
        if opcode(data) == kind:
            fake.faults.silence_connections()
            await wait_all_tasks_blocked()
            stopped.set()

    tap_client(fake, before=stop, pair=pair)
    return fake, stopped


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_ping_or_pong_that_it_does_not_take_does_not_hold_up_a_cancelled_stream(
    who: str, autojump_clock: MockClock
) -> None:
    fake, stopped = stops_reading_at(PONG if who == "server" else PING)
    async with taking(7):
        with trio.move_on_after(7):
            async with open_agentmail_stream(backend=fake, ping_interval=5 if who == "client" else None):
                await trio.sleep(5)
                if who == "server":
                    await fake.faults.send_bytes(frame(PING, b"?"))
                await trio.sleep_forever()
    assert stopped.is_set()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_stream_left_in_peace_is_not_delayed_beyond_close_timeout(who: str, autojump_clock: MockClock) -> None:
    fake, stopped = stops_reading_at(PONG if who == "server" else PING)
    async with taking(7 + 3):
        async with open_agentmail_stream(backend=fake, ping_interval=5 if who == "client" else None, close_timeout=3):
            await trio.sleep(5)
            if who == "server":
                await fake.faults.send_bytes(frame(PING, b"?"))
            await trio.sleep(2)
            assert stopped.is_set()


async def test_a_subscription_that_it_does_not_take_does_not_hold_up_entering(autojump_clock: MockClock) -> None:
    fake, _ = stops_reading_at(TEXT)
    async with taking(4):
        with pytest.raises(ConnectionFailedError):
            async with open_agentmail_stream(backend=fake, open_timeout=4, enter_timeout=4):
                pytest.fail("entered")
    async with taking(3):
        with trio.move_on_after(3):
            async with open_agentmail_stream(backend=fake):
                pytest.fail("entered")
    assert len(fake.record.handshakes) == 2
    assert not fake.record.frames


async def test_leaving_at_the_moment_of_a_ping_still_sends_a_close_frame(autojump_clock: MockClock) -> None:
    for steps in range(10):
        fake = FakeAgentMail()
        async with taking(10), open_agentmail_stream(backend=fake, ping_interval=10):
            await trio.sleep(10)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
        assert fake.record.close_codes == [1000]
