"""The REST API of the fake creates, changes and deletes inboxes, pods, labels, messages and threads."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import Subscribe, Subscribed, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

AGENT = "agent@agentmail.to"
MESSAGES = f"/inboxes/{AGENT}/messages"


class Api:
    """A client of the REST API. It checks the status and returns the body."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def __call__(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        return await self.send(method, path, body if method in ("POST", "PATCH") else None, status)

    async def send(self, method: str, path: str, body: Any, status: int = 200) -> Any:
        response = await self._client.request(method, path, json=body)
        assert response.status_code == status, response.text
        return response.json() if response.content else None


@asynccontextmanager
async def api(fake: FakeAgentMail) -> AsyncIterator[Api]:
    async with httpx2.AsyncClient(
        transport=fake.http_transport(), base_url="https://api.example/v0", headers={"Authorization": "Bearer am_key"}
    ) as client:
        yield Api(client)


# Inboxes


async def test_an_inbox_is_made_found_changed_and_deleted(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with api(fake) as call:
        made = await call(
            "POST", "/inboxes", username="Agent", display_name="An Agent", client_id="a-1", metadata={"n": 1, "b": True}
        )
        assert made == {
            "inbox_id": AGENT,
            "pod_id": "default",
            "email": AGENT,
            "display_name": "An Agent",
            "client_id": "a-1",
            "metadata": {"n": 1, "b": True},
            "created_at": made["created_at"],
            "updated_at": made["created_at"],
        }
        assert await call("GET", f"/inboxes/{AGENT}") == made
        assert (await call("GET", "/inboxes"))["inboxes"] == [made]
        await trio.sleep(1)
        changed = await call("PATCH", f"/inboxes/{AGENT}", metadata={"n": None, "s": "x"})
        assert (changed["display_name"], changed["metadata"]) == ("An Agent", {"b": True, "s": "x"})
        assert changed["updated_at"] > changed["created_at"] == made["created_at"]
        changed = await call("PATCH", f"/inboxes/{AGENT}", display_name="Agent", metadata=None)
        assert (changed["display_name"], "metadata" in changed) == ("Agent", False)
        assert await call("DELETE", f"/inboxes/{AGENT}", 204) is None
        await call("GET", f"/inboxes/{AGENT}", 404)
        assert (await call("GET", "/inboxes"))["inboxes"] == []


async def test_an_inbox_is_the_same_in_upper_and_lower_case(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox("Agent@agentmail.to", pod_id="pod")
    fake.mail.add_inbox("other@agentmail.to")
    async with open_agentmail_stream(Subscribe(inbox_ids=["AGENT@AgentMail.to"]), backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
        mail = await fake.deliver(inbox_id=AGENT, thread_id="t", message_id="m")
        assert mail.message.inbox_id == "Agent@agentmail.to"
        assert await events.receive() == mail
        await fake.mail.label(AGENT.upper(), "m", add=["seen"])
        [message] = fake.mail.messages(AGENT)
        assert "seen" in message.labels
        async with api(fake) as call:
            for path in (f"/inboxes/{AGENT}", f"/pods/pod/inboxes/{AGENT.upper()}"):
                assert (await call("GET", path))["inbox_id"] == "Agent@agentmail.to"
            for path in (f"{MESSAGES}/m", f"/inboxes/{AGENT.upper()}/threads/t"):
                assert (await call("GET", path))["inbox_id"] == "Agent@agentmail.to"
            await call("GET", "/inboxes/other@agentmail.to/threads/t", 404)
            await call("POST", "/inboxes", 403, username="agent")
            assert (await call("GET", "/inboxes"))["count"] == 2
            await call("DELETE", f"/inboxes/{AGENT}", 204)
            assert (await call("GET", "/inboxes"))["count"] == 1


async def test_an_inbox_created_without_fields_gets_an_address(autojump_clock: MockClock) -> None:
    async with api(FakeAgentMail()) as call:
        inboxes = [await call.send("POST", "/inboxes", body) for body in (None, {}, {"username": None})]
        elsewhere = await call("POST", "/inboxes", username="agent", domain="example.com")
    assert all(inbox["inbox_id"].endswith("@agentmail.to") for inbox in inboxes)
    assert len({inbox["inbox_id"] for inbox in inboxes}) == 3
    assert elsewhere["inbox_id"] == "agent@example.com"


async def test_an_inbox_is_made_once_for_each_client_id(autojump_clock: MockClock) -> None:
    async with api(FakeAgentMail()) as call:
        first = await call("POST", "/inboxes", client_id="one")
        assert await call("POST", "/inboxes", client_id="one") == first
        assert await call("POST", "/inboxes", client_id="two") != first
        assert (await call("GET", "/inboxes"))["count"] == 2


async def test_an_address_that_is_taken_is_refused(autojump_clock: MockClock) -> None:
    async with api(FakeAgentMail()) as call:
        await call("POST", "/inboxes", username="agent")
        refused = await call("POST", "/inboxes", 403, username="AGENT")
    assert (refused["name"], refused["code"]) == ("IsTakenError", "resource_taken")


@pytest.mark.parametrize(
    "body",
    [
        {"username": "a b"},
        {"username": 1},
        {"domain": "nowhere"},
        {"client_id": "me@example.com"},
        {"display_name": "a\nb"},
        {"metadata": ["x"]},
        {"metadata": {"x": []}},
        {"metadata": {"x" * 257: 1}},
        {"metadata": {"x": "x" * 257}},
        {"metadata": {str(number): number for number in range(257)}},
        [],
    ],
)
async def test_an_invalid_inbox_is_refused(body: Any, autojump_clock: MockClock) -> None:
    async with api(FakeAgentMail()) as call:
        assert (await call.send("POST", "/inboxes", body, 400))["code"] == "validation_error"
        assert (await call("GET", "/inboxes"))["count"] == 0


async def test_an_inbox_has_at_most_256_keys_of_metadata_and_null_clears_them(
    autojump_clock: MockClock,
) -> None:
    most = {f"{number:0256}": "x" * 256 for number in range(256)}
    async with api(FakeAgentMail()) as call:
        await call("POST", "/inboxes", username="agent", metadata={})
        await call("PATCH", f"/inboxes/{AGENT}", metadata=most)
        for wrong in ({}, {"one more": 1}, dict.fromkeys(map(str, range(257)))):
            refused = await call("PATCH", f"/inboxes/{AGENT}", 400, metadata=wrong, display_name="Agent")
            assert refused["errors"][0]["path"] == ["metadata"]
        inbox = await call("GET", f"/inboxes/{AGENT}")
        assert (inbox["metadata"], "display_name" in inbox) == (most, False)
        assert "metadata" not in await call("PATCH", f"/inboxes/{AGENT}", metadata=None)


async def test_paused_inboxes_are_refused_as_unsupported(autojump_clock: MockClock) -> None:
    async with api(FakeAgentMail()) as call:
        assert (await call.send("POST", "/inboxes", {"status": "paused"}, 422))["code"] == "unprocessable"
        await call.send("POST", "/inboxes", {"username": "agent", "status": "active"})
        await call.send("PATCH", f"/inboxes/{AGENT}", {"status": "paused"}, 422)
        await call.send("PATCH", f"/inboxes/{AGENT}", {"status": "active"})
        await call("PATCH", f"/inboxes/{AGENT}", 400)


async def test_an_inbox_is_deleted_with_its_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, thread_id="t")
    other = await fake.deliver(inbox_id="other@agentmail.to")
    fake.mail.index_after(60)
    await fake.deliver(inbox_id=AGENT, thread_id="t2")
    async with api(fake) as call:
        await call("DELETE", f"/inboxes/{AGENT}", 204)
        await call("GET", "/threads/t", 404)
        await trio.sleep(60)
        [thread] = (await call("GET", "/threads"))["threads"]
        assert thread["thread_id"] == other.message.thread_id
    # Any inbox can use the ids again.
    await fake.deliver(inbox_id="other@agentmail.to", thread_id="t")
    fake.mail.add_inbox(AGENT)
    assert len(fake.mail.messages(AGENT)) == 0


# Pods


async def test_there_is_a_default_pod_and_more_can_be_created(autojump_clock: MockClock) -> None:
    async with api(FakeAgentMail()) as call:
        [default] = (await call("GET", "/pods"))["pods"]
        assert (default["pod_id"], default["name"], "client_id" in default) == ("default", "default", False)
        pod = await call("POST", "/pods", name="Acme", client_id="acme")
        assert await call("POST", "/pods", client_id="acme") == pod
        assert await call("POST", "/pods") != await call("POST", "/pods")
        path = f"/pods/{pod['pod_id']}"
        assert await call("GET", path) == pod
        inbox = await call("POST", path + "/inboxes", username="agent", client_id="a")
        assert await call("POST", path + "/inboxes", client_id="a") == inbox
        assert (await call("POST", "/inboxes", client_id="a"))["inbox_id"] == AGENT
        assert (await call("GET", path + "/inboxes"))["inboxes"] == [inbox]
        assert await call("GET", f"{path}/inboxes/{AGENT}") == inbox
        await call("GET", f"/pods/default/inboxes/{AGENT}", 404)
        assert (await call("DELETE", path, 409))["code"] == "cannot_delete"
        await call("DELETE", f"{path}/inboxes/{AGENT}", 204)
        await call("DELETE", path, 204)
        await call("GET", path, 404)
        assert len((await call("GET", "/pods"))["pods"]) == 3


async def test_a_pod_lists_only_its_own_threads(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT, pod_id="pod")
    await fake.deliver(inbox_id=AGENT, thread_id="t")
    async with api(fake) as call:
        assert (await call("GET", "/pods/pod/threads/t"))["thread_id"] == "t"
        await call("GET", "/pods/default/threads/t", 404)


# Labels


async def test_a_client_adds_and_removes_labels_of_a_message(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=AGENT, message_id="m")
    async with api(fake) as call:
        await trio.sleep(1)
        answer = await call("PATCH", f"{MESSAGES}/m", add_labels=["Read", "both"], remove_labels=["unread", "both"])
        assert answer == {"message_id": "m", "labels": ["received", "read"]}
        assert (await call("PATCH", f"{MESSAGES}/m", add_labels="one"))["labels"] == ["received", "read", "one"]
        message = await call("GET", f"{MESSAGES}/m")
        assert message["labels"] == ["received", "read", "one"]
        assert message["updated_at"] > message["created_at"]
        assert (await call("GET", f"{MESSAGES}?labels=READ"))["count"] == 1
        await call("PATCH", f"{MESSAGES}/none", 404, add_labels="x")
    assert mail.message.labels == ("received", "unread")


@pytest.mark.parametrize(
    "body", [{}, {"add_labels": ["sent"]}, {"remove_labels": "Received"}, {"add_labels": 1}, {"add_labels": [1]}]
)
async def test_an_invalid_change_of_labels_is_refused(body: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, message_id="m", thread_id="t")
    async with api(fake) as call:
        for path, more in (
            (f"{MESSAGES}/m", {}),
            ("/threads/t", {}),
            (f"{MESSAGES}/batch-update", {"message_ids": ["m"]}),
        ):
            method = "POST" if more else "PATCH"
            assert (await call(method, path, 400, **body, **more))["code"] == "validation_error"


async def test_the_labels_of_many_messages_change_at_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for message_id in "ab":
        await fake.deliver(inbox_id=AGENT, message_id=message_id)
    async with api(fake) as call:
        answer = await call("POST", f"{MESSAGES}/batch-update", message_ids=["b", "none", "a"], add_labels="done")
        labels = ["received", "unread", "done"]
        updates = [{"message_id": message_id, "labels": labels} for message_id in "ba"]
        assert answer == {"limit": 3, "count": 2, "updates": updates}
        await call("POST", f"{MESSAGES}/batch-update", 400, message_ids=list(map(str, range(51))), add_labels="x")


async def test_the_labels_of_a_thread_are_those_of_all_its_messages(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for message_id in "ab":
        await fake.deliver(inbox_id=AGENT, message_id=message_id, thread_id="t")
    async with api(fake) as call:
        answer = await call("PATCH", "/threads/t", add_labels=["todo"], remove_labels=["unread"])
        assert answer == {"thread_id": "t", "labels": ["received", "todo"]}
        assert (await call("GET", f"{MESSAGES}/a"))["labels"] == ["received", "todo"]
        for _ in range(98):
            await fake.deliver(inbox_id=AGENT, thread_id="t")
        await call("PATCH", f"/inboxes/{AGENT}/threads/t", 422, add_labels=["x"])


# What is deleted


async def test_a_message_is_deleted(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, message_id="m")
    async with api(fake) as call:
        await call("DELETE", f"{MESSAGES}/m", 204)
        await call("DELETE", f"{MESSAGES}/m", 404)
        assert (await call("GET", "/threads"))["count"] == 0


async def test_a_thread_is_deleted_with_its_messages(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for _ in range(3):
        await fake.deliver(inbox_id=AGENT, thread_id="t")
    async with api(fake) as call:
        await call("DELETE", f"/inboxes/{AGENT}/threads/t", 204)
        await call("DELETE", "/threads/t", 404)
        assert (await call("GET", MESSAGES))["count"] == 0


# Filters


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("from=JANE", ["b", "a"]),
        ("from=bob@", ["c"]),
        ('from=["jane", "example.com"]', ["b", "a"]),
        ("from=jane&subject=re:", ["b"]),
        ("to=team", ["c"]),
        ("subject=lunch&subject=re", ["b"]),
        ("subject=nothing", []),
    ],
)
async def test_messages_are_filtered_by_parts_of_their_fields(
    query: str, found: list[str], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, message_id="a", subject="Lunch?")
    await fake.deliver(inbox_id=AGENT, message_id="b", subject="Re: Lunch?")
    await fake.deliver(inbox_id=AGENT, message_id="c", subject=None, from_="bob@example.com", to="team@example.com")
    async with api(fake) as call:
        messages = (await call("GET", f"{MESSAGES}?{query}"))["messages"]
        assert [message["message_id"] for message in messages] == found
        for wrong in ("[1]", "["):
            await call("GET", f"{MESSAGES}?from={wrong}", 400)


async def test_threads_are_filtered_by_parts_of_their_fields(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, thread_id="a", subject="Lunch?")
    await fake.deliver(inbox_id=AGENT, thread_id="b", subject=None, from_="bob@example.com", to="team@example.com")
    async with api(fake) as call:
        for query, found in (("senders=jane", "a"), ("recipients=TEAM", "b"), ("subject=lunch", "a")):
            assert [thread["thread_id"] for thread in (await call("GET", f"/threads?{query}"))["threads"]] == [found]


# Who may do what, and what there is not


@pytest.mark.parametrize(
    ("permission", "method", "path"),
    [
        ("inbox_read", "GET", f"/inboxes/{AGENT}"),
        ("inbox_create", "POST", "/inboxes"),
        ("inbox_update", "PATCH", f"/inboxes/{AGENT}"),
        ("inbox_delete", "DELETE", f"/inboxes/{AGENT}"),
        ("pod_read", "GET", "/pods"),
        ("pod_read", "GET", "/pods/default"),
        ("pod_create", "POST", "/pods"),
        ("pod_delete", "DELETE", "/pods/default"),
        ("message_read", "GET", f"{MESSAGES}/m/raw"),
        ("message_read", "GET", f"{MESSAGES}/m/attachments/x"),
        ("message_read", "GET", "/threads/t/attachments/x"),
        ("message_update", "PATCH", f"{MESSAGES}/m"),
        ("message_update", "POST", f"{MESSAGES}/batch-update"),
        ("message_update", "PATCH", "/threads/t"),
        ("message_delete", "DELETE", f"{MESSAGES}/m"),
        ("message_delete", "DELETE", "/threads/t"),
        ("message_send", "POST", f"{MESSAGES}/m/reply"),
    ],
)
async def test_each_call_requires_its_permission(
    permission: str, method: str, path: str, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail(permissions={"metrics_read"})
    await fake.deliver(inbox_id=AGENT, message_id="m", thread_id="t")
    async with api(fake) as call:
        refused = await call(method, path, 403)
        assert refused["code"] == "missing_permission"
        assert f"'{permission}'" in refused["fix"]
    fake.permissions = {permission}
    async with httpx2.AsyncClient(
        transport=fake.http_transport(), base_url="https://api.example/v0", headers={"Authorization": "Bearer am_key"}
    ) as client:
        assert (await client.request(method, path)).status_code != 403


async def test_trash_requires_its_permission(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(permissions={"message_read", "message_update"})
    await fake.deliver(inbox_id=AGENT, message_id="m")
    async with api(fake) as call:
        await call("PATCH", f"{MESSAGES}/m", add_labels="trash")
        await call("GET", f"{MESSAGES}/m", 404)
        fake.permissions = {"message_read", "label_trash_read"}
        await call("GET", f"{MESSAGES}/m")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/inboxes"),
        ("POST", f"/inboxes/{AGENT}"),
        ("DELETE", "/pods"),
        ("GET", "/pods/default/drafts"),
        ("POST", "/threads"),
        ("PUT", MESSAGES),
        ("POST", f"{MESSAGES}/m"),
    ],
)
async def test_an_unsupported_call_is_a_404(method: str, path: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, message_id="m")
    async with api(fake) as call:
        assert (await call(method, path, 404))["code"] == "not_found"
