import os

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# The proxies of a test are those that it starts, whatever there is where it runs.
for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait before an attempt is as long as it may be."""
    monkeypatch.setattr("trio_agentmail._reconnect.random.uniform", lambda low, high: high)
