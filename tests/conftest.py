import pytest


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait before an attempt is as long as it may be."""
    monkeypatch.setattr("trio_agentmail._reconnect.random.uniform", lambda low, high: high)
