"""The faults. Each function returns whether it had an effect."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from .schedule import Fault

if TYPE_CHECKING:
    from .playing import Chaos

__all__ = ["FAULTS"]


async def cut(chaos: "Chaos", fault: Fault) -> bool:
    """The connection is cut without a close frame."""
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return chaos.records[fault.mails[0].message_id].in_gap


async def reset(chaos: "Chaos", fault: Fault) -> bool:
    """The connection is reset, and the data in transit is lost."""
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        wire = chaos.wire
        wire.jam()
        await chaos.arrive(*fault.mails)
        await trio.sleep(fault.seconds / 100)
        wire.reset()
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def half_open(chaos: "Chaos", fault: Fault) -> bool:
    """The connection stays open, but no data passes it any more."""
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        chaos.fake.faults.silence_connections()
        chaos.half_open = True
        await chaos.arrive(*fault.mails)
    chaos.half_open = False
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def close_code(chaos: "Chaos", fault: Fault) -> bool:
    """The server closes with a close code."""
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        await chaos.fake.drop_connections(fault.code if fault.code != 1006 else 1002)
        await chaos.arrive(*fault.mails)
    return chaos.records[fault.mails[0].message_id].in_gap


async def refused(chaos: "Chaos", fault: Fault) -> bool:
    """After a cut, the next connection attempts are refused."""
    await chaos.steady()
    before = chaos.backend.attempts["refused"]
    chaos.fake.faults.refuse_connections(fault.times)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.attempts["refused"] >= before + fault.times, 3600)


async def unavailable(chaos: "Chaos", fault: Fault) -> bool:
    """After a cut, the next handshakes are answered with 503, in some cases with `Retry-After`."""
    await chaos.steady()
    before = chaos.backend.attempts["503"]
    headers = [("Retry-After", str(int(fault.seconds)))] if fault.times == 1 else []
    chaos.fake.faults.reject_handshakes(503, headers=headers, times=fault.times)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.attempts["503"] >= before + fault.times, 3600)


async def unanswered(chaos: "Chaos", fault: Fault) -> bool:
    """After a cut, handshakes or subscriptions are not answered."""
    await chaos.steady()
    before = chaos.backend.attempts["all"]
    times = min(fault.times, 3)
    (chaos.fake.faults.hang_handshakes if fault.code < 1010 else chaos.fake.faults.withhold_confirmations)(times)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.attempts["all"] > before + times, 3600)


async def flapping(chaos: "Chaos", fault: Fault) -> bool:
    """The server confirms and cuts several times, and mail arrives in every gap."""
    await chaos.steady()
    before = chaos.backend.attempts["all"]
    async with chaos.breaking():
        chaos.fake.faults.drop_after_confirming(fault.times)
        await chaos.fake.drop_connections()
    for mail in fault.mails:
        await chaos.arrive(mail)
        await trio.sleep(fault.seconds / 100)
    return await chaos.until(lambda: chaos.backend.attempts["all"] > before + fault.times, 3600)


async def slow(chaos: "Chaos", fault: Fault) -> bool:
    """The data trickles in."""
    await chaos.steady()
    wire = chaos.wire
    wire.slow_until = until = trio.current_time() + max(fault.seconds, 30)
    before = wire.slow_reads
    await chaos.arrive(*fault.before, *fault.mails)
    await trio.sleep_until(until)
    return wire.slow_reads > before


async def slow_consumer(chaos: "Chaos", fault: Fault) -> bool:
    """The consumer does not read while recovered mail waits for it, and then the connection is cut again."""
    await chaos.steady()
    chaos.consumer_waits_for += 1
    await chaos.arrive(*fault.before)
    await chaos.fake.drop_connections()
    await chaos.arrive(*fault.mails)
    with trio.move_on_after(60 + fault.seconds):  # while the consumer has no room, the cut may not even be noticed
        await chaos.steady()
        await trio.sleep(fault.seconds / 2)
    is_behind = not chaos.has_come(fault.mails[0])
    await chaos.fake.drop_connections()
    await trio.sleep(fault.seconds / 2)
    chaos.consumer_waits_for -= 1
    return is_behind


async def duplicated(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are pushed several times."""
    await chaos.steady()
    before = chaos.session.statistics().duplicates
    chaos.fake.faults.duplicate_pushes(len(fault.mails), copies=1 + fault.times % 3)
    await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.session.statistics().duplicates > before, 60)


async def swallowed(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are not pushed, although the connection is up."""
    await chaos.steady()
    chaos.fake.faults.swallow_pushes(len(fault.mails))
    await chaos.arrive(*fault.mails)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def reordered(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are pushed in another order."""
    await chaos.steady()
    mails = (*fault.before, *fault.mails)
    chaos.fake.faults.reorder_pushes(len(mails))
    await chaos.arrive(*mails)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    numbers = [mail.number for mail in mails]
    order = [number for number in chaos.came if number in numbers]
    return order != sorted(order) or len(order) == 1


async def pushed_late(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are pushed late, possibly after they have been recovered."""
    await chaos.steady()
    chaos.fake.faults.delay_pushes(fault.seconds, len(fault.mails))
    await chaos.arrive(*fault.mails)
    await trio.sleep(fault.seconds / 2)
    is_late = not chaos.has_come(fault.mails[0]) or chaos.came_recovered(fault.mails)
    if fault.times < 3:
        async with chaos.breaking():
            await chaos.fake.drop_connections()
    return is_late


async def back_dated(chaos: "Chaos", fault: Fault) -> bool:
    """Back-dated mails arrive in a gap or are not pushed, and are older than what is listed first."""
    await chaos.steady()
    if fault.times < 3:
        chaos.fake.faults.swallow_pushes(len(fault.mails))
        await chaos.arrive(*fault.mails)
    else:
        async with chaos.breaking():
            await chaos.fake.drop_connections()
            await chaos.arrive(*fault.mails)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def indexed_late(chaos: "Chaos", fault: Fault) -> bool:
    """Mails arrive in a gap, and are not listed yet when the connection is back."""
    await chaos.steady()
    async with chaos.indexing(fault.seconds):
        async with chaos.breaking():
            await chaos.fake.drop_connections()
            await chaos.arrive(*fault.mails)
        await trio.sleep(fault.seconds)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def released_in_gap(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are held, and some are released late, in a gap."""
    await chaos.arrive(*fault.before, *fault.mails, held=True)
    return await _release_late(chaos, fault)


async def held_in_gap(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are held in a gap, so that no event tells of it, and some are released late, in another gap."""
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        in_gap = chaos.in_gap
        await chaos.arrive(*fault.before, *fault.mails, held=True)
    return await _release_late(chaos, fault) and in_gap


async def _release_late(chaos: "Chaos", fault: Fault) -> bool:
    await trio.sleep(fault.seconds * 10)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        in_gap = chaos.in_gap
        await chaos.release(*fault.mails)
    return in_gap


async def released_at_once(chaos: "Chaos", fault: Fault) -> bool:
    """Mails are held and released while the connection is up; some are deleted instead."""
    await chaos.steady()
    await chaos.arrive(*fault.before, *fault.mails, held=True)
    await trio.sleep(fault.seconds)
    was_held = not chaos.has_come(fault.mails[0])
    await chaos.release(*fault.mails)
    await chaos.delete(*fault.before)
    return await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800) and was_held


async def too_many_requests(chaos: "Chaos", fault: Fault) -> bool:
    """The REST API answers 429 while mail is to be recovered."""
    chaos.fake.faults.fail_requests(429, headers=[("Retry-After", str(int(fault.seconds / 20)))], times=fault.times)
    return await _requests_fail(chaos, fault, 429)


async def server_error(chaos: "Chaos", fault: Fault) -> bool:
    """The REST API answers 500 while mail is to be recovered."""
    chaos.fake.faults.fail_requests(500, times=fault.times)
    return await _requests_fail(chaos, fault, 500)


async def no_answer(chaos: "Chaos", fault: Fault) -> bool:
    """The REST API does not answer while mail is to be recovered."""
    chaos.fake.faults.hang_requests(fault.times)
    return await _requests_fail(chaos, fault, None)


async def requests_reset(chaos: "Chaos", fault: Fault) -> bool:
    """Connections to the REST API break while mail is to be recovered."""
    chaos.fake.faults.break_requests(fault.times)
    return await _requests_fail(chaos, fault, None)


async def _requests_fail(chaos: "Chaos", fault: Fault, status: int | None) -> bool:
    before = chaos.backend.statuses[status]
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.statuses[status] >= before + fault.times, 3600)


FAULTS: dict[str, Callable[["Chaos", Fault], Awaitable[bool]]] = {
    function.__name__: function
    for function in (
        cut,
        reset,
        half_open,
        close_code,
        refused,
        unavailable,
        unanswered,
        flapping,
        slow,
        slow_consumer,
        duplicated,
        swallowed,
        reordered,
        pushed_late,
        back_dated,
        indexed_late,
        released_in_gap,
        held_in_gap,
        released_at_once,
        too_many_requests,
        server_error,
        no_answer,
        requests_reset,
    )
}
