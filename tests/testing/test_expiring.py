"""Values that expire are kept for their lifetime, and then take no memory."""

from datetime import UTC, datetime, timedelta

from trio_agentmail.testing._agentmail.mail.expiring import Expiring


def test_a_value_is_kept_for_its_lifetime_and_no_longer() -> None:
    start = datetime(2026, 2, 3, tzinfo=UTC)
    things: Expiring[str] = Expiring(timedelta(seconds=10))
    for second in range(100):
        now = start + timedelta(seconds=second)
        assert things.put(f"{second}", f"thing {second}", now) == now + timedelta(seconds=10)
        assert things.get(f"{second - 9}", now) == (f"thing {second - 9}" if second >= 9 else None)
        assert things.get(f"{second - 10}", now) is None
        assert len(things) <= 10
    assert things.get("99", start + timedelta(seconds=109)) is None
    assert len(things) == 0


def test_a_value_expires_although_the_clock_was_set_back() -> None:
    start = datetime(2026, 2, 3, tzinfo=UTC)
    things: Expiring[str] = Expiring(timedelta(seconds=10))
    things.put("a", "before", start + timedelta(hours=1))
    assert things.put("b", "after", start) == start + timedelta(seconds=10)
    for seconds, expected in ((9, "after"), (10, None)):
        assert things.get("b", start + timedelta(seconds=seconds)) == expected
    assert things.get("a", start) == "before"
    things.put("b", "again", start + timedelta(seconds=10))
    assert things.get("b", start + timedelta(seconds=19)) == "again"
    assert things.get("a", start + timedelta(hours=2)) is None
    assert len(things) == 0
