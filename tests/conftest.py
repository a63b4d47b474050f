"""Settings and fixtures for all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

# So that a failed assertion of a helper shows its values.
pytest.register_assert_rewrite("tests.helpers")

# The time that an example takes depends on the load of the machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Tests use the proxies that they start, and not those of the machine.
for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]


@pytest.fixture
def adjustable_clock() -> MockClock:
    """A clock that goes on in real time, and that a test can move forward. See `tests/helpers/time_outs.py`."""
    return MockClock(rate=1.0)


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every delay before an attempt as long as the policy allows."""
    monkeypatch.setattr("trio_agentmail._reconnect.random.uniform", lambda low, high: high)
