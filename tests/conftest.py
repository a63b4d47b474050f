import os

import pytest

# The proxies of a test are those that it starts, whatever there is where it runs.
for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait before an attempt is as long as it may be."""
    monkeypatch.setattr("trio_agentmail._reconnect.random.uniform", lambda low, high: high)
