"""Fixtures of the tests over sockets."""

import pytest

from tests.helpers.proxies import Certificates


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    """Certificates for AgentMail's hosts and proxies, and a client that trusts them."""
    return Certificates()
