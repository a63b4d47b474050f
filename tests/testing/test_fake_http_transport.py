"""The REST API in memory answers clients of httpx2, clients of httpx, and the official SDK."""

import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import agentmail
import httpx
import httpx2
import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import AgentMailEnvironment
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"
BASE_URL = "https://api.agentmail.to/v0"


@pytest.fixture(params=["httpx2", "httpx"])
def library(request: pytest.FixtureRequest) -> Any:
    return {"httpx2": httpx2, "httpx": httpx}[request.param]


@pytest.mark.parametrize("environment", [AgentMailEnvironment.PROD, AgentMailEnvironment.EU_PROD])
async def test_a_plain_client_meets_the_fake_whatever_its_base_url(
    environment: AgentMailEnvironment, library: Any, fake_agentmail: FakeAgentMail, autojump_clock: MockClock
) -> None:
    mail = await fake_agentmail.deliver(inbox_id=INBOX)
    async with library.AsyncClient(
        transport=fake_agentmail.http_transport(),
        base_url=environment.http,
        headers={"Authorization": "Bearer am_any"},
    ) as client:
        listing = (await client.get(f"/v0/inboxes/{INBOX}/messages")).json()
    assert [message["message_id"] for message in listing["messages"]] == [mail.message.message_id]


async def test_under_trio_the_sdk_lists_and_answers_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=INBOX, from_="jane@example.com")
    async with httpx.AsyncClient(transport=fake.http_transport()) as http:
        client = agentmail.AsyncAgentMail(api_key="am_any", httpx_client=http)
        # The SDK's own retries need asyncio.
        messages = await client.inboxes.messages.list(INBOX, request_options={"max_retries": 0})
        [message] = messages.messages
        assert message.message_id == mail.message.message_id
        await client.inboxes.messages.reply(
            INBOX, message.message_id, text="Hi, Jane!", request_options={"max_retries": 0}
        )
    [answer] = fake.mail.messages(INBOX, "sent")
    assert (answer.text, answer.to, answer.thread_id) == ("Hi, Jane!", ("jane@example.com",), mail.message.thread_id)


async def test_one_transport_serves_clients_of_both_libraries(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    transport = fake.http_transport()
    async with (
        httpx.AsyncClient(transport=transport, base_url=BASE_URL) as old,
        httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as new,
    ):
        assert type(await old.get("/inboxes")) is httpx.Response
        assert type(await new.get("/inboxes")) is httpx2.Response


async def test_a_request_arrives_as_the_client_has_made_it(library: Any, autojump_clock: MockClock) -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200)

    fake = FakeAgentMail()
    fake.faults.answer_requests(answer)
    async with library.AsyncClient(transport=fake.http_transport()) as client:
        sent = client.build_request(
            "POST",
            "https://user@api.agentmail.to:8443/v0/a%2Fb/%20c%25?q=1%2B&q=%C3%BC",
            headers=[("X-Twice", "1"), ("x-twice", "2")],
            content=b"\x00\xff",
        )
        await client.send(sent)
    [request] = seen
    assert type(request) is httpx2.Request
    assert (request.method, str(request.url)) == (sent.method, str(sent.url))
    assert request.headers.raw == sent.headers.raw
    assert request.content == b"\x00\xff"
    assert request.extensions["timeout"] == sent.extensions["timeout"]


async def test_an_upload_in_pieces_arrives_whole_and_with_its_own_headers_only(
    library: Any, autojump_clock: MockClock
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"hel"
        yield b"lo"

    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200)

    fake = FakeAgentMail()
    fake.faults.answer_requests(answer, times=2)
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        sent = [client.build_request("POST", "/inboxes", content=content) for content in (pieces(), b"")]
        for request in sent:
            await client.send(request)
    assert [request.content for request in seen] == [b"hello", b""]
    assert [request.headers.raw for request in seen] == [request.headers.raw for request in sent]
    assert seen[0].headers["Transfer-Encoding"] == "chunked"
    assert [recorded.body for recorded in fake.record.requests] == [b"hello", b""]


async def test_a_response_has_the_status_headers_and_extensions_it_was_given(
    library: Any, autojump_clock: MockClock
) -> None:
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Date", "today")]
    fake = FakeAgentMail()
    fake.faults.answer_requests(
        lambda _: httpx2.Response(418, headers=headers, json=[1], extensions={"reason_phrase": b"Tea"})
    )
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        response = await client.get("/inboxes")
    assert type(response) is library.Response
    assert (response.status_code, response.reason_phrase, response.json()) == (418, "Tea", [1])
    assert response.headers.multi_items() == [
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("date", "today"),
        ("content-length", "3"),
        ("content-type", "application/json"),
    ]


async def test_a_packed_body_is_unpacked_by_the_client(library: Any, autojump_clock: MockClock) -> None:
    packed = gzip.compress(b"hello")

    async def pieces() -> AsyncIterator[bytes]:
        yield packed[:5]
        yield packed[5:]

    fake = FakeAgentMail()
    for content in (packed, pieces()):
        response = httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=content)
        fake.faults.answer_requests(lambda _, response=response: response)  # type: ignore[misc]
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        for _ in range(2):
            response = await client.get("/inboxes")
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.text == "hello"


async def test_the_answer_of_another_server_can_be_passed_on(library: Any, autojump_clock: MockClock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield gzip.compress(b"hello")

    other = FakeAgentMail()
    other.faults.answer_requests(lambda _: httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=pieces()))
    fake = FakeAgentMail()
    async with (
        httpx2.AsyncClient(transport=other.http_transport(), base_url=BASE_URL) as between,
        library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client,
    ):
        fake.faults.answer_requests(lambda _: between.get("/inboxes"))
        response = await client.get("/inboxes")
    assert (response.status_code, response.text) == (200, "hello")


async def test_a_body_that_breaks_off_is_an_error_of_the_clients_library(
    library: Any, autojump_clock: MockClock
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"hel"
        raise httpx2.ReadError("reset")

    fake = FakeAgentMail()
    fake.faults.answer_requests(lambda _: httpx2.Response(200, content=pieces()))
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        with pytest.raises(library.ReadError, match="reset"):
            await client.get("/inboxes")


async def test_a_client_that_leaves_a_body_unread_closes_it(library: Any, autojump_clock: MockClock) -> None:
    closed: list[bool] = []

    class Body(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await trio.sleep_forever()
            yield b""

        async def aclose(self) -> None:
            closed.append(True)

    fake = FakeAgentMail()
    fake.faults.answer_requests(lambda _: httpx2.Response(200, stream=Body()))
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        async with client.stream("GET", "/inboxes"):
            assert closed == []
        assert closed == [True]


class OddError(httpx2.ReadTimeout):
    """A time-out of somebody's own."""


async def test_an_error_of_a_class_of_its_own_is_the_nearest_that_the_library_has(
    library: Any, autojump_clock: MockClock
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        raise OddError("too slow")

    fake = FakeAgentMail()
    fake.faults.answer_requests(answer)
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        with pytest.raises(library.ReadTimeout, match="too slow"):
            await client.get("/inboxes")


@pytest.mark.parametrize(
    ("returned", "told"), [(httpx.Response(200), "httpx.Response"), ({"messages": []}, "dict"), (None, "NoneType")]
)
async def test_a_function_that_returns_no_response_of_httpx2_is_a_type_error(
    returned: Any, told: str, library: Any, autojump_clock: MockClock
) -> None:
    def odd(_: httpx2.Request) -> Any:
        return returned

    fake = FakeAgentMail()
    fake.faults.answer_requests(odd)
    async with library.AsyncClient(transport=fake.http_transport(), base_url=BASE_URL) as client:
        expected = rf"answer_requests\(odd\): the function must return an httpx2\.Response, not {told}$"
        with pytest.raises(TypeError, match=expected):
            await client.get("/inboxes")


async def test_a_request_of_no_library_is_a_type_error(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OddRequest:
        async def aread(self) -> bytes:
            return b""

        def __repr__(self) -> str:
            return "OddRequest()"

    transport: Any = FakeAgentMail().http_transport()
    for _ in range(2):
        with pytest.raises(TypeError, match=r"answers requests of httpx2 and httpx, not OddRequest\(\)"):
            await transport.handle_async_request(OddRequest())
        monkeypatch.delitem(sys.modules, "httpx", raising=False)  # where it is not installed, nothing is different


def test_the_kit_does_not_import_httpx() -> None:
    program = """
import sys
sys.modules["httpx"] = None  # as where it is not installed
import httpx2, trio
from trio.testing import MockClock
from trio_agentmail import Subscribed, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

async def main():
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        await trio.sleep(60)
    async with httpx2.AsyncClient(transport=fake.http_transport(), base_url="https://fake/v0") as client:
        return (await client.get("/inboxes", headers={"Authorization": "Bearer am_any"})).text

print(trio.run(main, clock=MockClock(autojump_threshold=0)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["inboxes"] == []
