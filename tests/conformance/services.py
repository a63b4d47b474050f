"""The services that the same tests run against: the fake in memory, the emulator on ports, and the live service.

The live service is only read. Environment variables configure it:

    AGENTMAIL_CONFORMANCE_KEY          an API key; without it, the tests of the live service are skipped
    AGENTMAIL_CONFORMANCE_ENVIRONMENT  prod (the default) or eu
    AGENTMAIL_CONFORMANCE_INBOX        the inbox to read (default: the first in the list)
    AGENTMAIL_CONFORMANCE_SECONDS      how long to wait for pings and for an idle close (default: 150)
    AGENTMAIL_CONFORMANCE_REPORT       the file for the report (default: conformance-report.json)
"""

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import trio

from tests.conformance.schema import departures
from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import AgentMailEnvironment, Event, Subscribe
from trio_agentmail.testing import FakeAgentMail, make_event

__all__ = ["EmulatedService", "LiveService", "MemoryService", "Service", "start_emulator"]

KEY = "am_conformance"


class Service(ABC):
    """An AgentMail, as a client sees it.

    Attributes:
        inbox: An inbox. Except for the live service, no other test uses it.
        seconds: How long to observe an idle connection.
    """

    environment: AgentMailEnvironment
    key: str = KEY
    inbox: str
    seconds: float = 0.5

    def __init__(self) -> None:
        self.inbox = f"{uuid4()}@agentmail.to"

    def stream(
        self, subscribe: Subscribe | None = None, *, key: str | None = None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
        """Open a stream with this package's client."""
        subscribe = Subscribe() if subscribe is None else subscribe
        return open_agentmail_stream(subscribe, api_key=key or self.key, environment=self.environment)

    def http(self, *, key: str | None = "") -> httpx2.AsyncClient:
        """Return a client of the REST API. It sends no key if `key` is `None`, and the service's own by default."""
        headers = {} if key is None else {"Authorization": f"Bearer {key or self.key}"}
        return httpx2.AsyncClient(base_url=f"{self.environment.http}/v0", headers=headers, timeout=20.0)

    async def get(self, path: str, params: Any = None) -> Any:
        """Return the body of a successful answer."""
        async with self.http() as client:
            response = await client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    @abstractmethod
    async def happen(self, event_type: str, **fields: Any) -> None:
        """Make the service push an event of this type, by default about its inbox."""

    def check_shape(self, name: str, value: Any) -> None:
        """Check that an object follows the schema."""
        found = departures(name, value)
        assert not found, found


class MemoryService(Service):
    environment = AgentMailEnvironment.PROD

    def __init__(self, *, permissions: list[str] | None = None) -> None:
        super().__init__()
        self.fake = FakeAgentMail(api_keys=[KEY], permissions=permissions)
        self.fake.mail.add_inbox(self.inbox)

    def stream(
        self, subscribe: Subscribe | None = None, *, key: str | None = None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
        subscribe = Subscribe() if subscribe is None else subscribe
        return open_agentmail_stream(subscribe, api_key=key or self.key, backend=self.fake)

    def http(self, *, key: str | None = "") -> httpx2.AsyncClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key or self.key}"}
        return httpx2.AsyncClient(
            base_url=f"{self.environment.http}/v0", headers=headers, transport=self.fake.http_transport()
        )

    async def happen(self, event_type: str, **fields: Any) -> None:
        fields.setdefault("inbox_id", self.inbox)
        if event_type.startswith("message.received"):
            await self.fake.deliver(event_type=event_type, **fields)
        elif event_type == "message.security.review":
            await self.fake.deliver(held=True, **fields)
        elif event_type == "message.security.override":
            await self.fake.mail.release(fields["inbox_id"], fields["message_id"])
        elif event_type == "message.sent":
            await self.fake.mail.send(**fields)
        else:
            await self.fake.emit(make_event(event_type, **fields))


class EmulatedService(Service):
    def __init__(self, environment: AgentMailEnvironment) -> None:
        super().__init__()
        self.environment = environment

    async def happen(self, event_type: str, **fields: Any) -> None:
        command = {"event_type": event_type, "inbox_id": self.inbox, **fields}
        async with httpx2.AsyncClient(base_url=self.environment.http) as client:
            response = await client.post("/_emulator/trigger", json=command)
        assert response.status_code == 200, response.text


class LiveService(Service):
    """The live service. Tests change nothing there, and report its behaviour without judging it."""

    def __init__(self) -> None:
        key = os.environ.get("AGENTMAIL_CONFORMANCE_KEY")
        if not key:
            pytest.skip("testing the live service needs a key in $AGENTMAIL_CONFORMANCE_KEY")
        self.key = key
        in_europe = os.environ.get("AGENTMAIL_CONFORMANCE_ENVIRONMENT", "prod") == "eu"
        self.environment = AgentMailEnvironment.EU_PROD if in_europe else AgentMailEnvironment.PROD
        self.inbox = os.environ.get("AGENTMAIL_CONFORMANCE_INBOX") or self._first_inbox()
        self.seconds = float(os.environ.get("AGENTMAIL_CONFORMANCE_SECONDS", "150"))

    def _first_inbox(self) -> str:
        headers = {"Authorization": f"Bearer {self.key}"}
        response = httpx2.get(f"{self.environment.http}/v0/inboxes", headers=headers, params={"limit": 1}, timeout=20.0)
        inboxes = response.raise_for_status().json()["inboxes"]
        if not inboxes:
            pytest.skip("the key in $AGENTMAIL_CONFORMANCE_KEY sees no inbox")
        return str(inboxes[0]["inbox_id"])

    async def happen(self, event_type: str, **fields: Any) -> None:
        pytest.skip("the live service is only read")

    def check_shape(self, name: str, value: Any) -> None:
        self.report("departures", name, departures(name, value))

    def report(self, *path: str | Any) -> None:
        """Write a finding into the report. The last argument is the finding, the others are its path."""
        *names, what = path
        file = Path(os.environ.get("AGENTMAIL_CONFORMANCE_REPORT", "conformance-report.json"))
        whole = json.loads(file.read_text()) if file.exists() else {}
        place = whole
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = what
        file.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")


def start_emulator(*options: str) -> "tuple[subprocess.Popen[str], AgentMailEnvironment]":
    """Start an emulator in a process of its own, and return when it is ready."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "trio_agentmail.cli", "emulate", "--json", "--http-port", "0"),
            *("--websocket-port", "0", "--api-key", KEY, *options),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, AgentMailEnvironment(**json.loads(process.stdout.readline()))
