"""AgentMail's clock is set by its answers, and counted on from there whatever this machine's clock does."""

import math

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_agentmail._clock import MAX_DIFFERENCE, TOLERANCE, Moment, ServerClock

NOON = 1_800_000_000.0
"""AgentMail's time at the beginning of a test."""

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=300)


class Machine:
    """A machine's time of day and AgentMail's time. Both advance with Trio's clock.

    Attributes:
        ahead: Seconds by which the machine's time of day is ahead of AgentMail's.
        slept: Seconds for which Trio's clock has stood still while the other two advanced.
    """

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self.slept = 0.0
        self._began = trio.current_time()
        self.clock = ServerClock(self.wall)

    @property
    def true(self) -> float:
        return NOON + self.slept + trio.current_time() - self._began

    def wall(self) -> float:
        return self.true + self.ahead

    def answer(self) -> None:
        """Let AgentMail answer, with the time in whole seconds."""
        self.clock.answered(math.floor(self.true))


async def test_before_the_first_answer_the_time_of_day_counts(autojump_clock: MockClock) -> None:
    machine = Machine(ahead=500)
    clock = machine.clock
    assert (clock.is_known, clock.is_certain, clock.ahead) == (False, False, 0)
    assert clock.now() == NOON + 500
    await trio.sleep(10)
    machine.ahead = 700
    assert clock.now() == NOON + 710
    assert clock.at(Moment(5.0, 6.0)) == 5.0


@pytest.mark.parametrize("ahead", [0.0, 2.0, -2.0, 600.0, -86_400.0 * 300])
async def test_an_answer_shows_how_far_the_clocks_are_apart(ahead: float, autojump_clock: MockClock) -> None:
    machine = Machine(ahead)
    machine.answer()
    clock = machine.clock
    assert clock.is_known
    assert clock.is_certain
    assert clock.ahead == -ahead
    assert clock.now() == NOON
    await trio.sleep(1234.5)
    assert clock.now() == NOON + 1234.5
    assert clock.is_certain


async def test_a_forward_step_of_the_time_of_day_changes_nothing(autojump_clock: MockClock) -> None:
    for ahead in (0.0, 600.0):
        machine = Machine(ahead)
        machine.answer()
        await trio.sleep(100)
        machine.ahead += 3600
        assert machine.clock.now() == NOON + 100
        assert not machine.clock.is_certain
        machine.answer()
        assert machine.clock.is_certain
        assert machine.clock.ahead == -ahead - 3600
        assert machine.clock.now() == NOON + 100


async def test_after_a_backward_step_the_earlier_time_counts_until_the_next_answer(autojump_clock: MockClock) -> None:
    machine = Machine()
    machine.answer()
    await trio.sleep(100)
    machine.ahead -= 3600
    assert machine.clock.now() == NOON - 3500
    assert not machine.clock.is_certain
    machine.answer()
    assert machine.clock.is_certain
    assert machine.clock.ahead == 3600
    assert machine.clock.now() == NOON + 100


async def test_after_sleep_of_the_machine_the_earlier_time_counts_until_the_next_answer(
    autojump_clock: MockClock,
) -> None:
    for ahead in (0.0, -600.0):
        machine = Machine(ahead)
        machine.answer()
        await trio.sleep(100)
        machine.slept = 8 * 3600.0
        assert machine.clock.now() == NOON + 100
        assert not machine.clock.is_certain
        await trio.sleep(10)
        assert machine.clock.now() == NOON + 110
        machine.answer()
        assert machine.clock.is_certain
        assert machine.clock.ahead == -ahead
        assert machine.clock.now() == NOON + 8 * 3600 + 110


@pytest.mark.parametrize("step", [-TOLERANCE + 0.1, TOLERANCE - 0.1])
async def test_a_step_below_the_resolution_of_a_date_is_ignored(step: float, autojump_clock: MockClock) -> None:
    machine = Machine()
    machine.answer()
    machine.ahead += step
    assert machine.clock.is_certain
    assert machine.clock.now() == NOON + min(step, 0)


async def test_earlier_moments_are_computed_from_a_later_answer(autojump_clock: MockClock) -> None:
    machine = Machine(ahead=600)
    before = machine.clock.moment()
    assert before == Moment(NOON + 600, trio.current_time())
    await trio.sleep(100)
    machine.answer()
    assert machine.clock.at(before) == NOON
    # If the time of day was stepped in between, the earlier of the two possible times counts.
    machine.ahead = 0
    await trio.sleep(100)
    machine.answer()
    assert machine.clock.at(before) == NOON
    machine.ahead = 1000
    machine.answer()
    assert machine.clock.at(before) == NOON - 400


# Dates in whole seconds


async def test_the_whole_seconds_of_a_date_do_not_make_a_correct_clock_jump(autojump_clock: MockClock) -> None:
    machine = Machine()
    for _ in range(50):
        await trio.sleep(0.37)
        machine.answer()
        assert machine.clock.ahead == 0
        assert machine.clock.now() == machine.true


async def test_the_whole_seconds_of_a_date_do_not_make_an_incorrect_clock_jump(autojump_clock: MockClock) -> None:
    # The first answer was as precise as any. The others agree with it.
    machine = Machine(ahead=600)
    await trio.sleep(0.9)
    machine.answer()
    first = machine.clock.ahead
    assert first == pytest.approx(-600.9)
    for _ in range(50):
        await trio.sleep(0.37)
        machine.answer()
        assert machine.clock.ahead == pytest.approx(first)
        assert machine.true - 1 <= machine.clock.now() <= machine.true


async def test_a_slow_answer_does_not_move_the_clock_ahead(autojump_clock: MockClock) -> None:
    machine = Machine(ahead=600)
    machine.answer()
    await trio.sleep(100)
    machine.clock.answered(NOON + 99)
    assert machine.clock.now() == NOON + 100
    machine.clock.answered(NOON + 90)  # the next one decides, whatever it says
    assert machine.clock.now() == NOON + 90
    machine.clock.answered(NOON + 100)
    assert machine.clock.now() == NOON + 100


# Answers without a valid time


async def test_an_answer_without_a_date_leaves_the_clock_as_it_is(autojump_clock: MockClock) -> None:
    machine = Machine(ahead=600)
    machine.answer()
    await trio.sleep(100)
    machine.clock.answered(None)
    assert (machine.clock.now(), machine.clock.ahead) == (NOON + 100, -600)
    machine.ahead = 0.0
    assert machine.clock.now() == NOON - 500
    machine.clock.answered(None)  # what is not known before it is not known after it
    assert machine.clock.now() == NOON - 500


async def test_without_any_date_the_time_of_day_at_the_first_answer_counts(autojump_clock: MockClock) -> None:
    machine = Machine(ahead=600)
    machine.clock.answered(None)
    assert (machine.clock.is_known, machine.clock.ahead) == (True, 0)
    await trio.sleep(10)
    machine.ahead = 5000
    assert machine.clock.now() == NOON + 610


@pytest.mark.parametrize("date", [0.0, -6e10, 2.5e11, NOON + MAX_DIFFERENCE, NOON - MAX_DIFFERENCE])
async def test_an_absurd_date_is_ignored(date: float, autojump_clock: MockClock) -> None:
    machine = Machine()
    machine.clock.answered(date)
    assert (machine.clock.now(), machine.clock.ahead) == (NOON, 0)
    machine = Machine(ahead=600)
    machine.answer()
    machine.clock.answered(date + 600)
    assert (machine.clock.now(), machine.clock.ahead) == (NOON, -600)


async def test_a_date_that_is_almost_a_year_off_is_accepted(autojump_clock: MockClock) -> None:
    for ahead in (MAX_DIFFERENCE - 1, 1 - MAX_DIFFERENCE):
        machine = Machine(ahead)
        machine.answer()
        assert machine.clock.now() == NOON


# Whatever happens to the machine


@repeatable
@given(
    st.lists(st.tuples(st.sampled_from(["sleep", "step", "suspend", "answer", "no date"]), st.floats(-9000, 9000))),
    st.floats(-1e6, 1e6),
)
def test_the_time_is_never_too_late_whatever_happens_to_the_machine(
    events: list[tuple[str, float]], ahead: float
) -> None:
    async def main() -> None:
        machine = Machine(ahead)
        machine.answer()
        for what, seconds in events:
            if what == "sleep":
                await trio.sleep(abs(seconds))
            elif what == "step":
                machine.ahead += seconds
            elif what == "suspend":
                machine.slept += abs(seconds)
            elif what == "answer":
                machine.answer()
                assert machine.clock.is_certain
                assert machine.clock.now() >= machine.true - 1 - TOLERANCE
            else:
                machine.clock.answered(None)
            assert machine.clock.now() <= machine.true + TOLERANCE

    trio.run(main, clock=MockClock(autojump_threshold=0))
