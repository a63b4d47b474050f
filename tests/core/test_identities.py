"""The memory of identities forgets the oldest generations by time, and no more than it must."""

import sys
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_agentmail import _identities as identities_module
from trio_agentmail._identities import GENERATION, MAX_GENERATIONS, Identities, Record

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=300)

SPAN = 100.0


def key(number: int) -> bytes:
    return f"identity {number}".encode()


def known(memory: Identities, numbers: range) -> list[int]:
    return [number for number in numbers if memory.get(key(number)) is not None]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit memory to three generations of two identities."""
    set_size(monkeypatch, 2, 3)


def set_size(monkeypatch: pytest.MonkeyPatch, generation: int, generations: int) -> None:
    monkeypatch.setattr(identities_module, "GENERATION", generation)
    monkeypatch.setattr(identities_module, "MAX_GENERATIONS", generations)


def test_an_added_identity_is_known_with_its_record_and_no_other_is() -> None:
    memory = Identities(SPAN)
    assert memory.get(key(1)) is None
    memory.add(key(1), 7, 0.0)
    memory.add(key(2), (7, 8), 0.0)
    memory.add(key(3), 0, 0.0)
    assert [memory.get(key(number)) for number in (1, 2, 3, 4)] == [7, (7, 8), 0, None]
    assert len(memory) == 3


def test_a_record_is_replaced_in_any_generation() -> None:
    memory = Identities(SPAN)
    for number in range(3):
        memory.add(key(number), 1, number * 1000.0)
    memory.replace(key(0), 5)
    memory.replace(key(2), (5, 6))
    assert [memory.get(key(number)) for number in range(3)] == [5, 1, (5, 6)]
    memory.replace(key(0), None)
    memory.replace(key(2), None)
    assert [memory.get(key(number)) for number in range(3)] == [None, 1, None]
    assert len(memory) == 1


def test_replacing_an_unknown_identity_does_nothing() -> None:
    memory = Identities(SPAN)
    memory.replace(key(1), 5)
    memory.add(key(2), 1, 0.0)
    memory.replace(key(1), 5)
    memory.replace(key(1), None)
    assert len(memory) == 1
    assert memory.get(key(1)) is None


def test_a_renewed_identity_outlives_older_ones_and_is_never_forgotten_sooner() -> None:
    memory = Identities(SPAN)
    for number, time in enumerate([0, 50, 1000]):
        memory.add(key(number), 1, time)
    assert memory.renew(key(0), (1, 2), 900.0) is None
    assert len(memory) == 3
    memory.forget(50.0)
    assert len(memory) == 3
    memory.forget(899.0)
    assert known(memory, range(3)) == [0, 2]
    assert memory.get(key(0)) == (1, 2)
    memory.forget(1000.0)
    assert known(memory, range(3)) == [0, 2]
    memory.add(key(3), 1, 5000.0)
    memory.renew(key(2), 3, 10.0)  # which is older: it stays as long as before
    memory.forget(1000.0)
    assert known(memory, range(4)) == [0, 2, 3]
    memory.forget(1000.5)
    assert known(memory, range(4)) == [2, 3]
    assert memory.get(key(2)) == 3
    memory.renew(key(9), 4, 5000.0)
    assert memory.get(key(9)) == 4


# Forgetting by time


def test_only_generations_that_are_older_as_a_whole_are_forgotten() -> None:
    memory = Identities(SPAN)
    for number, time in enumerate([0, 50, 100, 101, 150]):  # the fourth begins another generation
        assert memory.add(key(number), 1, time) is None
    memory.forget(100.0)
    assert known(memory, range(5)) == [0, 1, 2, 3, 4]
    memory.forget(100.5)
    assert known(memory, range(5)) == [3, 4]
    memory.forget(150.0)
    assert known(memory, range(5)) == [3, 4]
    for _ in range(2):
        memory.forget(1000.0)
        assert len(memory) == 0


def test_a_full_generation_is_forgotten_without_the_next_one(small: None) -> None:
    memory = Identities(SPAN)
    for number in range(3):
        memory.add(key(number), 1, number)
    memory.forget(1.0)
    assert known(memory, range(3)) == [0, 1, 2]
    memory.forget(2.0)
    assert known(memory, range(3)) == [2]


def test_several_generations_are_forgotten_at_once_up_to_the_first_young_one() -> None:
    memory = Identities(SPAN)
    for number, time in enumerate([5000, 1000, 2000, 4900, 8000]):  # two generations: what is older begins none
        memory.add(key(number), 1, time)
    memory.forget(5000.0)
    assert known(memory, range(5)) == [0, 1, 2, 3, 4]
    memory.forget(5001.0)
    assert known(memory, range(5)) == [4]
    for number, time in enumerate([9000, 9500, 10_000]):
        memory.add(key(number), 1, time)
    memory.forget(9500.0)
    assert known(memory, range(5)) == [1, 2]
    memory.add(key(3), 1, 11_000)
    memory.forget(10_001.0)
    assert known(memory, range(5)) == [3]


def test_a_generation_with_one_young_identity_stays_and_so_do_younger_ones() -> None:
    memory = Identities(SPAN)
    memory.add(key(0), 1, 0.0)
    memory.add(key(1), 1, 90.0)
    memory.add(key(2), 1, 200.0)
    memory.add(key(3), 1, 10.0)  # came late, and is in the youngest generation
    memory.forget(90.0)
    assert known(memory, range(4)) == [0, 1, 2, 3]
    memory.forget(91.0)
    assert known(memory, range(4)) == [2, 3]


def test_an_identity_outlives_its_time_by_one_span_at_most() -> None:
    memory = Identities(SPAN)
    for number in range(1000):
        memory.add(key(number), 1, number)
        memory.forget(number - 300.0)
        assert known(memory, range(max(0, number - 300), number + 1)) == [*range(max(0, number - 300), number + 1)]
        assert len(memory) <= 300 + SPAN + 2


# Running out of room


def test_without_room_the_oldest_generation_goes_and_its_newest_time_is_returned(small: None) -> None:
    memory = Identities(SPAN)
    times = [3.0, 9.0, 4.0, 5.0, 6.0, 7.0]
    assert [memory.add(key(number), 1, time) for number, time in enumerate(times)] == [None] * 6
    assert memory.add(key(6), 1, 8.0) == 9.0
    assert known(memory, range(7)) == [2, 3, 4, 5, 6]
    assert memory.add(key(7), 1, 8.5) is None
    assert memory.add(key(8), 1, 8.6) == 5.0
    assert known(memory, range(9)) == [4, 5, 6, 7, 8]


def test_rare_identities_take_no_room_from_others(small: None) -> None:
    # Each is too young for the generation before it, so each begins one. Merging makes room for more of them.
    memory = Identities(SPAN)
    for number in range(4):
        assert memory.add(key(number), number, number * 1000.0) is None
    assert known(memory, range(4)) == [0, 1, 2, 3]
    assert [memory.get(key(number)) for number in range(4)] == [0, 1, 2, 3]
    memory.forget(1000.0)
    assert known(memory, range(4)) == [0, 1, 2, 3]
    memory.forget(2000.0)
    assert known(memory, range(4)) == [2, 3]


def test_neighbouring_generations_are_merged_only_if_they_fit_into_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_size(monkeypatch, 3, 3)
    memory = Identities(SPAN)
    for number, time in enumerate([0, 1, 1000, 1001, 2000]):
        assert memory.add(key(number), 1, time) is None
    assert memory.add(key(5), 1, 3000.0) is None  # 2000 joins the two before it
    assert memory.add(key(6), 1, 4000.0) == 1.0
    assert known(memory, range(7)) == [2, 3, 4, 5, 6]


def test_a_merged_generation_has_the_newer_time_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    set_size(monkeypatch, 10, 2)
    for times in ([0, 1, 1000, 2000], [0, 1000, 1001, 2000], [1000, 0, 1001, 2000]):
        memory = Identities(SPAN)
        for number, time in enumerate(times):
            memory.add(key(number), 1, time)
        newest = max(times[:3])
        memory.forget(newest)
        assert known(memory, range(4)) == [0, 1, 2, 3]
        memory.forget(newest + 0.5)
        assert known(memory, range(4)) == [3]


def test_at_any_rate_half_of_all_places_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_size(monkeypatch, 10, 8)
    for per_span in range(1, 11):
        memory = Identities(SPAN)
        for number in range(40):
            assert memory.add(key(number), 1, number // per_span * 1000.0) is None
        assert known(memory, range(40)) == [*range(40)]


def test_a_generation_is_as_full_as_its_dict_gets() -> None:
    # With one more identity, the dict would double its size.
    records = {number << 20: 0 for number in range(GENERATION - 1)}
    size = sys.getsizeof(records)
    records[-1] = 0
    assert sys.getsizeof(records) == size
    records[-2] = 0
    assert sys.getsizeof(records) > size
    assert pytest.approx(1_500_000, rel=0.02) == GENERATION * MAX_GENERATIONS


# A model: a plain dict of all identities with their times

Step: TypeAlias = tuple[str, int, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "renew", "replace", "remove", "forget"]),
        st.integers(0, 9),
        st.integers(0, 400),
    ),
    max_size=60,
)


@repeatable
@given(steps, st.integers(1, 4), st.integers(1, 4))
def test_it_matches_a_plain_dict_except_for_what_it_has_forgotten(
    steps: list[Step], generation: int, generations: int
) -> None:
    model: dict[int, tuple[float, Record]] = {}
    with pytest.MonkeyPatch.context() as patch:
        set_size(patch, generation, generations)
        memory = Identities(SPAN)
        for count, (name, number, time) in enumerate(steps):
            forgotten: float | None = None
            if name == "add" and number not in model:
                forgotten = memory.add(key(number), count, float(time))
                model[number] = (float(time), count)
            elif name == "renew" and number in model:
                forgotten = memory.renew(key(number), count, float(time))
                model[number] = (max(model[number][0], float(time)), count)
            elif name == "replace":
                memory.replace(key(number), (count, number))
                if number in model:
                    model[number] = (model[number][0], (count, number))
            elif name == "remove":
                memory.replace(key(number), None)
                model.pop(number, None)
            elif name == "forget":
                memory.forget(time)
            gone = [other for other in model if memory.get(key(other)) is None]
            if name == "forget":
                assert all(model[other][0] < time for other in gone)
            else:
                # No identity is forgotten that is younger than the returned time.
                assert all(forgotten is not None and model[other][0] <= forgotten for other in gone)
            for other in gone:
                del model[other]
            assert {other: memory.get(key(other)) for other in model} == {
                other: record for other, (_, record) in model.items()
            }
            assert len(memory) == len(model) <= generation * generations
