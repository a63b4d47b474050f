"""`FakeAgentMail.installed()` makes a fake the default backend of this process, within a block."""

from typing import Any

import agentmail
import pytest
from trio.testing import MockClock

from trio_agentmail import Subscribed, open_agentmail_stream
from trio_agentmail._network import NetworkBackend, default_backend
from trio_agentmail.testing import FakeAgentMail


async def test_a_stream_without_a_backend_connects_to_the_installed_fake_without_a_key(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTMAIL_API_KEY", raising=False)
    with FakeAgentMail().installed() as fake:
        async with open_agentmail_stream() as events:
            assert isinstance(await events.receive(), Subscribed)
        assert [handshake.key for handshake in fake.record.handshakes] == [fake.api_key]


async def test_a_stream_with_a_backend_ignores_the_installed_fake(
    fake_agentmail: FakeAgentMail, autojump_clock: Any
) -> None:
    other = FakeAgentMail()
    async with open_agentmail_stream(backend=other):
        assert (fake_agentmail.connected, other.connected) == (0, 1)


async def test_the_fixture_does_not_hide_the_module_of_the_official_sdk(
    fake_agentmail: FakeAgentMail, request: pytest.FixtureRequest
) -> None:
    assert isinstance(fake_agentmail, FakeAgentMail)
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue(agentmail.__name__)


def test_after_the_block_the_network_is_the_default_again() -> None:
    fake = FakeAgentMail()
    with pytest.raises(KeyError), fake.installed():
        assert default_backend() is fake
        raise KeyError
    assert isinstance(default_backend(), NetworkBackend)
    with fake.installed():
        assert default_backend() is fake


def test_installing_a_second_fake_is_an_error_and_keeps_the_first() -> None:
    with FakeAgentMail().installed() as fake:
        with pytest.raises(RuntimeError, match="FakeAgentMail is installed already"), FakeAgentMail().installed():
            pass
        assert default_backend() is fake
