"""The outbox: events in order and each once, and notices that do not pile up."""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_agentmail import (
    CaughtUp,
    Disconnected,
    ErrorEvent,
    Event,
    Message,
    MessageReceivedEvent,
    RecoveryFailed,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail._channel import Abandoned
from trio_agentmail._delivered import Delivered
from trio_agentmail._outbox import Outbox

S = Subscribed()
MAX_SIZE = 2**25


def D(number: int = 0) -> Disconnected:
    return Disconnected(reason=f"loss {number}", code=1006, last_received=datetime(2025, 1, 1, tzinfo=UTC))


def E(number: int) -> UnknownEvent:
    return UnknownEvent(event_type="new", event_id=f"event {number}", reason="", raw=str(number))


def nothing_delivered() -> Delivered:
    return Delivered(time.time, keep=3600)


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        yield nursery
        nursery.cancel_scope.cancel()
    outbox.close()
    outbox.events.close()


async def give(outbox: Outbox, items: Iterable[Event]) -> None:
    for item in items:
        if isinstance(item, Subscribed | Disconnected):
            outbox.notify(item)
        else:
            await outbox.put(item)


async def take_all(outbox: Outbox) -> list[Event]:
    """Take what waits, and what then gets room, as a consumer does that comes back."""
    taken: list[Event] = []
    while True:
        await wait_all_tasks_blocked()
        try:
            taken.append(outbox.events.receive_nowait())
        except trio.WouldBlock:
            return taken


@pytest.mark.parametrize(
    ("given_", "seen"),
    [
        ([S], [S]),
        ([S, D(1)], [S, D(1)]),
        ([S, D(1), S], [S, D(1), S]),
        ([S, D(1), S, D(2)], [S, D(1)]),
        ([S, D(1), S, D(2), S], [S, D(1), S]),
        ([S, D(1), S, D(2), S, D(3), S, D(4), S], [S, D(1), S]),
        ([D(1), S], [D(1), S]),
        ([D(1), D(2)], [D(1)]),
        ([S, S], [S, S]),
        ([S, S, D(1), S], [S, S, D(1), S]),
        ([S, D(1), S, S, D(2), S], [S, D(1), S]),
        ([S, E(1), D(1), S], [S, E(1), D(1), S]),
        ([S, E(1), D(1), S, D(2), S], [S, E(1), D(1), S]),
        ([S, D(1), S, E(1), D(2), S], [S, D(1), S, E(1), D(2), S]),
        ([S, D(1), S, E(1), D(2), S, D(3)], [S, D(1), S, E(1), D(2)]),
        ([S, D(1), E(1), D(2), S], [S, D(1), E(1), D(2), S]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("room", [1, 2, 3, 64])
async def test_untaken_notices_are_merged_unless_an_event_is_between_them(
    given_: list[Event], seen: list[Event], room: int
) -> None:
    outbox = Outbox(room, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        nursery.start_soon(give, outbox, given_)
        # With little room a put waits, and the notices after it find that what came before was taken. So nothing is
        # taken before all is given, unless an event needs the room.
        await wait_all_tasks_blocked()
        assert await take_all(outbox) == seen


async def test_a_notice_that_was_taken_is_not_merged_with() -> None:
    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        outbox.notify(S)
        outbox.notify(D(1))
        assert [outbox.events.receive_nowait(), outbox.events.receive_nowait()] == [S, D(1)]
        outbox.notify(S)
        outbox.notify(D(2))
        outbox.notify(S)
        outbox.notify(D(3))
        outbox.notify(S)
        assert await take_all(outbox) == [S, D(2), S]


async def test_notices_never_wait_and_never_pile_up() -> None:
    outbox = Outbox(2, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        outbox.notify(S)
        await outbox.put(E(1))
        for number in range(1000):
            outbox.notify(D(number))
            outbox.notify(S)
            if number % 100 == 0:
                await wait_all_tasks_blocked()
        assert outbox.waiting == 4
        assert await take_all(outbox) == [S, E(1), D(0), S]
        assert outbox.waiting == 0


async def test_an_event_waits_for_room_behind_the_notices_that_wait_for_it() -> None:
    async def put() -> None:
        await outbox.put(E(2))
        put_at.append(len(received))

    received: list[Event] = []
    put_at: list[int] = []
    outbox = Outbox(1, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        await outbox.put(E(1))
        outbox.notify(D(1))
        outbox.notify(S)
        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        assert (outbox.delivered, put_at) == (1, [])
        for _ in range(4):
            received.append(outbox.events.receive_nowait())
            await wait_all_tasks_blocked()
    assert received == [E(1), D(1), S, E(2)]
    assert put_at == [3]
    assert outbox.delivered == 2


async def test_an_event_that_waits_behind_a_notice_comes_although_another_notice_arrives() -> None:
    failed = RecoveryFailed(since=datetime(2025, 1, 1, tzinfo=UTC), reason="one")
    caught_up = CaughtUp(since=datetime(2025, 1, 1, tzinfo=UTC))
    outbox = Outbox(1, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        outbox.notify(S)
        outbox.notify(failed)
        await wait_all_tasks_blocked()
        nursery.start_soon(outbox.put, E(1))
        await wait_all_tasks_blocked()
        outbox.notify(caught_up)
        assert await take_all(outbox) == [S, failed, caught_up, E(1)]
        assert outbox.delivered == 1


async def test_waiting_counts_what_waits_in_the_channel_before_it_and_behind_it() -> None:
    outbox = Outbox(2, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        assert outbox.waiting == 0
        await outbox.put(E(1))
        assert outbox.waiting == 1
        await outbox.put(E(2))
        nursery.start_soon(outbox.put, E(3))
        await wait_all_tasks_blocked()
        assert outbox.waiting == 3
        outbox.events.receive_nowait()
        await wait_all_tasks_blocked()
        assert outbox.waiting == 2
        outbox.notify(D(1))
        outbox.notify(S)
        assert outbox.waiting == 4


async def test_merging_takes_nothing_from_a_consumer_that_waits() -> None:
    async def consume() -> None:
        async for event in outbox.events.clone():
            received.append(event)

    received: list[Event] = []
    outbox = Outbox(1, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        nursery.start_soon(consume)
        await wait_all_tasks_blocked()
        for number in range(3):
            outbox.notify(D(number))
            outbox.notify(S)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    # The first loss had found its taker at once, and was not there to be merged with.
    assert received == [D(0), S, D(1), S]


async def test_with_clones_only_notices_pile_up_no_further_than_the_channel_is_large() -> None:
    outbox = Outbox(5, MAX_SIZE, nothing_delivered())
    clone = outbox.events.clone()
    outbox.events.close()
    async with running(outbox):
        for number in range(100):
            outbox.notify(D(number))
            outbox.notify(S)
        assert outbox.waiting <= 5 + 3  # and one Subscribed, Disconnected, Subscribed behind what is full
        received = []
        with pytest.raises(trio.WouldBlock):
            while True:
                received.append(clone.receive_nowait())
                await wait_all_tasks_blocked()
        assert received[:5] == [D(0), S, D(1), S, D(2)]
        assert received[-1] == S
        await outbox.put(E(1))
        assert clone.receive_nowait() == E(1)
        clone.close()


# Each event once


async def test_an_event_is_delivered_once() -> None:
    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        for number in (1, 2, 1, 3, 3, 2, 4):
            await outbox.put(E(number))
        assert await take_all(outbox) == [E(1), E(2), E(3), E(4)]
        assert (outbox.delivered, outbox.duplicates) == (4, 3)


async def test_an_event_that_was_delivered_is_not_delivered_again_after_it_was_taken() -> None:
    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        await outbox.put(E(1))
        outbox.events.receive_nowait()
        await outbox.put(E(1))
        assert await take_all(outbox) == []


async def test_a_put_that_is_cancelled_while_it_waits_has_delivered_nothing() -> None:
    outbox = Outbox(1, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        await outbox.put(E(1))
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await outbox.put(E(2))
        assert scope.cancelled_caught
        assert outbox.delivered == 1
        assert await take_all(outbox) == [E(1)]
        await outbox.put(E(2))
        assert await take_all(outbox) == [E(2)]
        assert (outbox.delivered, outbox.duplicates) == (2, 0)


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_the_same_mail_under_another_event_id_is_not_delivered_again() -> None:
    def received(event_id: str, message_id: str = "<1@example.com>", inbox_id: str = "a@agentmail.to") -> Event:
        message = Message(inbox_id=inbox_id, message_id=message_id)
        return MessageReceivedEvent(event_type="message.received", event_id=event_id, message=message)

    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        first = received("one")
        others = [received("one", message_id="<2@example.com>"), received("one", inbox_id="b@agentmail.to")]
        for event in (first, received("two"), *others):
            await outbox.put(event)
        assert await take_all(outbox) == [first, *others]
        assert outbox.duplicates == 1


async def test_the_same_complaint_of_the_server_again_is_another_one() -> None:
    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        complaint = ErrorEvent(name="internal", message="oh", raw="the same")
        await outbox.put(complaint)
        await outbox.put(complaint)
        assert await take_all(outbox) == [complaint, complaint]
        assert outbox.duplicates == 0


async def test_the_memory_of_what_was_delivered_is_bounded_and_forgets_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 1)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 3)
    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        for number in (1, 2, 3, 4):
            await outbox.put(E(number))
        for number in (2, 3, 4, 1, 2):
            await outbox.put(E(number))
        assert await take_all(outbox) == [E(n) for n in (1, 2, 3, 4, 1, 2)]
        assert outbox.duplicates == 3


# Without receivers


async def test_without_receivers_put_and_notify_raise() -> None:
    outbox = Outbox(2, MAX_SIZE, nothing_delivered())
    clone = outbox.events.clone()
    async with running(outbox):
        outbox.events.close()
        assert outbox.is_wanted()
        await outbox.put(E(1))
        outbox.notify(D(1))
        clone.close()
        assert not outbox.is_wanted()
        with pytest.raises(Abandoned):
            await outbox.put(E(2))
        with pytest.raises(Abandoned):
            outbox.notify(D(2))
        with pytest.raises(Abandoned):
            outbox.notify(S)
        assert outbox.delivered == 1


async def test_without_receivers_a_put_that_waits_for_room_raises() -> None:
    async def put() -> None:
        with pytest.raises(Abandoned):
            await outbox.put(E(2))
        told.append(True)

    told: list[bool] = []
    outbox = Outbox(1, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        await outbox.put(E(1))
        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        outbox.events.close()
        await wait_all_tasks_blocked()
        assert told == [True]


async def test_without_receivers_a_put_behind_waiting_notices_raises() -> None:
    async def put() -> None:
        with pytest.raises(Abandoned):
            await outbox.put(E(2))
        told.append(True)

    told: list[bool] = []
    outbox = Outbox(1, MAX_SIZE, nothing_delivered())
    async with running(outbox) as nursery:
        await outbox.put(E(1))
        outbox.notify(D(1))
        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        outbox.events.close()
        await wait_all_tasks_blocked()
        assert told == [True]


async def test_after_the_close_receivers_get_what_waits_in_the_channel_and_then_its_end() -> None:
    outbox = Outbox(64, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        await give(outbox, [S, E(1), E(2)])
        outbox.close()
        async with outbox.events as events:
            assert [event async for event in events] == [S, E(1), E(2)]


# Any interleaving

Step: TypeAlias = Literal["put", "put again", "cancel the put", "subscribed", "disconnected", "take", "settle"]
STEPS: tuple[Step, ...] = ("put", "put again", "cancel the put", "subscribed", "disconnected", "take", "settle")


class Model:
    """A model: a plain list of what has not been taken."""

    def __init__(self) -> None:
        self.waiting: list[Event] = []

    def notify(self, notice: Subscribed | Disconnected) -> None:
        if isinstance(notice, Disconnected):
            for index in reversed(range(len(self.waiting))):
                if isinstance(self.waiting[index], Disconnected):
                    del self.waiting[index + 1 :]
                    return
                if not isinstance(self.waiting[index], Subscribed):
                    break
        self.waiting.append(notice)


@given(st.integers(1, 3), st.lists(st.sampled_from(STEPS), max_size=40))
async def test_the_consumer_sees_what_the_model_says_with_any_interleaving(room: int, steps: list[Step]) -> None:
    putting: trio.CancelScope | None = None

    async def put(event: Event) -> None:
        nonlocal putting
        with trio.CancelScope() as putting:
            await outbox.put(event)
        if not putting.cancelled_caught:
            delivered.add(event)
        putting = None

    outbox = Outbox(room, MAX_SIZE, nothing_delivered())
    model = Model()
    delivered: set[Event] = set()
    number = 0
    async with running(outbox) as nursery:

        async def begin_put(event: Event) -> None:
            if event not in delivered:
                model.waiting.append(event)
            nursery.start_soon(put, event)
            await wait_all_tasks_blocked()

        for step in steps:
            if step == "settle":
                await wait_all_tasks_blocked()
            elif step == "take":
                try:
                    event = outbox.events.receive_nowait()
                except trio.WouldBlock:
                    # What waits may need a moment to get into the room that was made.
                    await wait_all_tasks_blocked()
                    if not model.waiting:
                        continue
                    event = outbox.events.receive_nowait()
                assert event == model.waiting.pop(0)
            elif step == "cancel the put":
                if putting is not None:
                    putting.cancel()
                    await wait_all_tasks_blocked()
                    if E(number) not in delivered:
                        model.waiting.remove(E(number))
            elif putting is not None:
                # One task puts and notifies: until its put is done, it does nothing else.
                await wait_all_tasks_blocked()
                continue
            elif step == "put":
                number += 1
                await begin_put(E(number))
            elif step == "put again":
                await begin_put(E(number))
            else:
                notice = S if step == "subscribed" else D()
                outbox.notify(notice)
                model.notify(notice)
        assert outbox.waiting == len(model.waiting)
        assert await take_all(outbox) == model.waiting
        assert outbox.delivered == len(delivered)


async def test_it_is_full_when_the_consumer_has_as_many_events_waiting_as_it_asked_for() -> None:
    outbox = Outbox(2, MAX_SIZE, nothing_delivered())
    async with running(outbox):
        await outbox.put(E(1))
        assert not outbox.is_full
        await outbox.put(E(2))
        assert outbox.is_full
        outbox.notify(D())
        assert outbox.is_full
        assert await take_all(outbox) == [E(1), E(2), D()]
        assert not outbox.is_full


# Room for text


def T(number: int, size: int) -> UnknownEvent:
    return UnknownEvent(event_type="new", event_id=f"event {number}", reason="", raw=f"{number:{size}}")


def sizes(events: Iterable[Event]) -> list[int]:
    return [len(event.raw) for event in events if isinstance(event, UnknownEvent)]


async def test_text_that_waits_is_bounded_whatever_the_number_of_events() -> None:
    outbox = Outbox(64, 100, nothing_delivered())
    async with running(outbox) as nursery:
        nursery.start_soon(give, outbox, [T(number, 40) for number in range(5)])
        await wait_all_tasks_blocked()
        assert outbox.events.statistics().current_buffer_used == 2
        assert outbox.waiting == 3
        assert outbox.is_full
        outbox.events.receive_nowait()
        await wait_all_tasks_blocked()
        assert outbox.events.statistics().current_buffer_used == 2
        assert len(await take_all(outbox)) == 4
        assert not outbox.is_full
        assert outbox.waiting == 0


async def test_an_event_larger_than_all_that_may_wait_comes_alone() -> None:
    outbox = Outbox(64, 100, nothing_delivered())
    async with running(outbox) as nursery:
        nursery.start_soon(give, outbox, [T(0, 10), T(1, 1000), T(2, 10)])
        await wait_all_tasks_blocked()
        assert outbox.events.statistics().current_buffer_used == 1
        assert sizes([outbox.events.receive_nowait()]) == [10]
        await wait_all_tasks_blocked()
        assert outbox.events.statistics().current_buffer_used == 1
        assert sizes(await take_all(outbox)) == [1000, 10]


async def test_small_events_do_not_pass_a_large_one_that_waits() -> None:
    outbox = Outbox(64, 100, nothing_delivered())
    async with running(outbox) as nursery:
        await give(outbox, [T(0, 30), T(1, 30)])
        nursery.start_soon(give, outbox, [T(2, 90)])
        await wait_all_tasks_blocked()
        nursery.start_soon(give, outbox, [T(3, 1)])
        await wait_all_tasks_blocked()
        assert outbox.waiting == 4
        assert sizes(await take_all(outbox)) == [30, 30, 90, 1]


async def test_a_task_that_waits_for_room_is_woken_when_every_receiver_is_closed() -> None:
    async def put() -> None:
        with pytest.raises(Abandoned):
            await outbox.put(T(1, 90))
        told.set()

    outbox = Outbox(64, 100, nothing_delivered())
    told = trio.Event()
    async with running(outbox) as nursery:
        await outbox.put(T(0, 90))
        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        outbox.events.close()
        await told.wait()


async def test_an_event_whose_wait_for_room_is_cancelled_can_come_again() -> None:
    outbox = Outbox(64, 100, nothing_delivered())
    async with running(outbox):
        await outbox.put(T(0, 90))
        with trio.move_on_after(0.01) as scope:
            await outbox.put(T(1, 90))
        assert scope.cancelled_caught
        assert sizes(await take_all(outbox)) == [90]
        assert await outbox.put(T(1, 90))
        assert sizes(await take_all(outbox)) == [90]


async def test_a_notice_waits_behind_large_events_that_were_taken_back() -> None:
    """A loss takes back what waits in the channel, and that needs room again."""
    outbox = Outbox(64, 100, nothing_delivered())
    async with running(outbox) as nursery:
        first: list[Event] = [T(0, 60), D(), S, T(1, 60), S, D(), S]
        nursery.start_soon(give, outbox, first)
        await wait_all_tasks_blocked()
        assert await take_all(outbox) == first
        second: list[Event] = [T(2, 60), D(), T(3, 60)]
        nursery.start_soon(give, outbox, second)
        await wait_all_tasks_blocked()
        outbox.notify(D(2))
        await wait_all_tasks_blocked()
        assert outbox.events.statistics().current_buffer_used == 2
        assert await take_all(outbox) == [T(2, 60), D(), T(3, 60)]


async def put_until_cancelled(outbox: Outbox, *events: Event) -> None:
    with trio.move_on_after(0.05):
        async with trio.open_nursery() as nursery:
            for event in events:
                nursery.start_soon(outbox.put, event)


async def test_an_event_that_waits_when_the_stream_is_stopped_is_handed_over_later() -> None:
    outbox = Outbox(64, 100, nothing_delivered())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await outbox.put(T(0, 90))
        outbox.stop()
        await put_until_cancelled(outbox, T(1, 80), T(2, 80))
        assert outbox.waiting == 3
        nursery.start_soon(outbox.finish)
        taken = [event async for event in outbox.events]
    assert sizes(taken) == [90, 80, 80]
    assert outbox.delivered == 3


async def test_the_backlog_waits_for_room_and_ends_when_every_receiver_is_closed() -> None:
    outbox = Outbox(64, 100, nothing_delivered())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await outbox.put(T(0, 90))
        outbox.stop()
        await put_until_cancelled(outbox, T(1, 90), T(2, 90))
        await wait_all_tasks_blocked()
        assert outbox.waiting == 3
        outbox.events.close()
    outbox.close()


@given(
    puts=st.lists(st.lists(st.integers(1, 60), max_size=8), min_size=1, max_size=3),
    takes=st.lists(st.integers(0, 4), max_size=12),
    room=st.integers(1, 5),
    stops_after=st.integers(0, 12),
)
async def test_with_bounded_text_nothing_is_lost_and_everything_is_in_order(
    puts: list[list[int]], takes: list[int], room: int, stops_after: int
) -> None:
    async def putting(task: int, its: list[int]) -> None:
        for number, size in enumerate(its):
            await outbox.put(T(100 * task + number, size + 3))

    outbox = Outbox(room, 64, nothing_delivered())
    taken: list[Event] = []
    async with running(outbox) as nursery:
        for task, its in enumerate(puts):
            nursery.start_soon(putting, task, its)
        for step, count in enumerate(takes):
            await wait_all_tasks_blocked()
            if step == stops_after:
                outbox.stop()
            for _ in range(min(count, outbox.events.statistics().current_buffer_used)):
                taken.append(outbox.events.receive_nowait())
        taken += await take_all(outbox)
        assert outbox.waiting == 0
    raws = [int(event.raw) for event in taken if isinstance(event, UnknownEvent)]
    for task, its in enumerate(puts):
        assert [raw for raw in raws if raw // 100 == task] == [100 * task + number for number in range(len(its))]


@given(events=st.lists(st.integers(1, 90), min_size=1, max_size=30), room=st.integers(1, 6))
async def test_what_waits_is_never_more_than_it_may(events: list[int], room: int) -> None:
    outbox = Outbox(room, 64, nothing_delivered())
    left = [T(number, size + 3) for number, size in enumerate(events)]
    async with running(outbox) as nursery:
        nursery.start_soon(give, outbox, left.copy())
        while left:
            await wait_all_tasks_blocked()
            waiting = outbox.events.statistics().current_buffer_used
            text = sum(sizes(left[:waiting]))
            assert 1 <= waiting <= room
            assert text <= 64 or waiting == 1
            # What may wait does.
            assert waiting == room or waiting == len(left) or text + len(left[waiting].raw) > 64
            assert outbox.events.receive_nowait() == left.pop(0)
