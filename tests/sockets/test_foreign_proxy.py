"""Streams through another implementation of a proxy: proxy.py, in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.proxies import Certificates
from tests.helpers.servers import KEY, failure_of_one_attempt, reserved_port
from trio_agentmail import (
    AgentMailEnvironment,
    CaughtUp,
    MessageReceivedEvent,
    ReconnectPolicy,
    open_agentmail_stream,
)
from trio_agentmail.testing import FakeAgentMail

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs a name of this machine that is no loopback name"
)

HERE = "0.0.0.0"
"""An address of this machine that is not always reached directly."""

CREDENTIALS = "user:p%40ss%3Aw%C3%B6rd"


@contextmanager
def running(*options: str, folder: Path) -> Iterator[int]:
    """The proxy; its port."""
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    one_of_each = ["--num-workers", "1", "--num-acceptors", "1"]
    command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", *one_of_each]
    with subprocess.Popen(
        [*command, "--port-file", str(port_file), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not (port_file.exists() and port_file.read_text().strip()):
                assert process.poll() is None
                time.sleep(0.02)
            yield int(port_file.read_text())
        finally:
            process.terminate()


@pytest.fixture(scope="module", params=["http", "https"])
def proxy(
    request: pytest.FixtureRequest, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Its URL, without the credentials that it wants."""
    folder = tmp_path_factory.mktemp("proxy")
    options = ["--basic-auth", "user:p@ss:wörd"]
    if request.param == "https":
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        certificates.certificate.private_key_pem.write_to_path(key)
        for blob in certificates.certificate.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        options += ["--key-file", str(key), "--cert-file", str(certificate)]
    with running(*options, folder=folder) as port:
        yield f"{request.param}://127.0.0.1:{port}"


def with_credentials(url: str, credentials: str) -> str:
    return url.replace("://", f"://{credentials}@")


async def test_events_and_missed_mail_come_through_it(proxy: str, certificates: Certificates) -> None:
    subjects: list[tuple[str | None, str]] = []
    fake = FakeAgentMail(api_keys={KEY})
    async with fake.serve(ssl_context=certificates.servers, allow_hosts={HERE}) as where:
        environment = AgentMailEnvironment(
            http=where.http.replace("localhost", HERE), websockets=where.websockets.replace("localhost", HERE)
        )
        async with open_agentmail_stream(
            api_key=KEY,
            environment=environment,
            proxy=with_credentials(proxy, CREDENTIALS),
            ssl_context=certificates.client,
            reconnect=ReconnectPolicy(initial_delay=0.01, max_delay=0.05),
        ) as events:
            await fake.deliver(inbox_id="agent@agentmail.to", subject="pushed")
            async with fake.faults.outage():
                await fake.deliver(inbox_id="agent@agentmail.to", subject="missed")
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    subjects.append((event.message.subject, event.origin))
                if isinstance(event, CaughtUp) and len(subjects) == 2:
                    break
    assert subjects == [("pushed", "live"), ("missed", "recovered")]


@pytest.mark.parametrize("credentials", ["user:wrong", "other:p%40ss%3Aw%C3%B6rd"])
async def test_credentials_that_it_refuses_are_reported_as_such(
    credentials: str, proxy: str, certificates: Certificates
) -> None:
    environment = AgentMailEnvironment(http=f"https://{HERE}:1", websockets=f"wss://{HERE}:1")
    failure = await failure_of_one_attempt(
        environment, proxy=with_credentials(proxy, credentials), ssl_context=certificates.client
    )
    name = proxy.partition("://")[2]
    assert str(failure) == f"the proxy {name} does not accept the user name and the password (HTTP status 407)"


async def test_a_server_that_it_cannot_reach_is_reported_as_such(proxy: str, certificates: Certificates) -> None:
    with reserved_port() as port:
        environment = AgentMailEnvironment(http=f"https://{HERE}:{port}", websockets=f"wss://{HERE}:{port}")
        failure = await failure_of_one_attempt(
            environment, proxy=with_credentials(proxy, CREDENTIALS), ssl_context=certificates.client
        )
    name = proxy.partition("://")[2]
    assert f"the proxy {name} did not connect to {HERE}:{port}: HTTP status 502" in str(failure)
