"""The AgentMail behind `FakeAgentMail`: without Trio, with the time passed in and the events returned."""

import ast
import inspect
import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from trio_agentmail import (
    MessageReceivedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    Subscribe,
)
from trio_agentmail.events import MessageBouncedEvent, MessageDeliveredEvent, MessageSentEvent
from trio_agentmail.testing import _agentmail as package
from trio_agentmail.testing._agentmail.agentmail import AgentMail
from trio_agentmail.testing._agentmail.keys import KeyRing
from trio_agentmail.testing._agentmail.permissions import PERMISSIONS
from trio_agentmail.testing._agentmail.rest.api import RESOURCES, ROUTES
from trio_agentmail.testing._agentmail.rest.exchange import RestRequest, RestResponse
from trio_agentmail.testing._agentmail.rest.routes import Route

INBOX = "agent@agentmail.to"
OTHER = "other@agentmail.to"
POD = "default"
NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

FORBIDDEN = {"anyio", "asyncio", "h11", "httpx", "httpx2", "socket", "ssl", "time", "trio", "trio_websocket", "wsproto"}


@pytest.fixture
def agentmail() -> AgentMail:
    return AgentMail(now=NOW)


def ask(
    agentmail: AgentMail, method: str, path: str, body: object = None, *, now: datetime = NOW, key: str = "am_key"
) -> RestResponse:
    raw_path, _, query = path.partition("?")
    request = RestRequest(
        method=method,
        origin="https://api.agentmail.to",
        raw_path=f"/v0{raw_path}",
        query=query,
        headers={"authorization": f"Bearer {key}"},
        body=b"" if body is None else json.dumps(body).encode(),
    )
    return agentmail.answer(request, now=now)


def parsed(response: RestResponse) -> Any:
    assert response.status == 200, response.body
    return json.loads(response.body)


def imported_by(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


def test_it_imports_no_trio_no_http_library_no_sockets_and_no_clock() -> None:
    modules = list(Path(inspect.getfile(package)).parent.rglob("*.py"))
    assert len(modules) > 20
    assert {str(path): imported_by(path) & FORBIDDEN for path in modules if imported_by(path) & FORBIDDEN} == {}


def test_a_delivered_mail_causes_its_announcement(agentmail: AgentMail) -> None:
    outcome = agentmail.deliver(inbox_id=INBOX, text="Hello", now=NOW)
    assert outcome.events == (outcome.value,)
    assert outcome.value.message.created_at == NOW
    assert agentmail.messages(INBOX) == (outcome.value.message,)


def test_a_raw_mail_causes_an_announcement_for_each_inbox_that_it_names(agentmail: AgentMail) -> None:
    for inbox_id in (INBOX, OTHER):
        agentmail.add_inbox(inbox_id, now=NOW)
    outcome = agentmail.deliver_raw(f"To: {INBOX}\r\nBcc: {OTHER}\r\n\r\nHi".encode(), now=NOW)
    assert outcome.events == outcome.value
    assert [event.message.inbox_id for event in outcome.value] == [INBOX, OTHER]


def test_a_held_mail_causes_a_review_and_its_release_causes_two_events(agentmail: AgentMail) -> None:
    held = agentmail.deliver(inbox_id=INBOX, held=True, now=NOW)
    [review] = held.events
    assert isinstance(review, MessageSecurityReviewEvent)
    message_id = held.value.message.message_id
    released = agentmail.release(INBOX, message_id, now=NOW + MINUTE)
    announcement, override = released.events
    assert announcement == released.value
    assert isinstance(override, MessageSecurityOverrideEvent)
    assert override.message.manual_override is not None
    assert override.message.manual_override.released_at == NOW + MINUTE
    assert released.value.message.timestamp == NOW


def test_a_sent_mail_causes_its_events_in_the_order_of_its_way(agentmail: AgentMail) -> None:
    agentmail.add_inbox(OTHER, now=NOW)
    outcome = agentmail.send(inbox_id=INBOX, to=[OTHER, "nobody@agentmail.to"], now=NOW)
    assert outcome.events[0] is outcome.value
    kinds = [MessageSentEvent, MessageDeliveredEvent, MessageBouncedEvent, MessageReceivedEvent]
    assert [type(event) for event in outcome.events] == kinds


def test_labels_are_converted_to_lower_case(agentmail: AgentMail) -> None:
    message_id = agentmail.deliver(inbox_id=INBOX, now=NOW).value.message.message_id
    assert agentmail.label(INBOX, message_id, add=["Urgent", "VIP"], now=NOW) == ("received", "unread", "urgent", "vip")
    assert agentmail.label(INBOX, message_id, remove=["URGENT", "Unread"], now=NOW) == ("received", "vip")


def test_labels_change_and_mail_is_deleted_at_the_time_that_is_passed_in(agentmail: AgentMail) -> None:
    message_id = agentmail.deliver(inbox_id=INBOX, now=NOW).value.message.message_id
    labels = agentmail.label(INBOX, message_id, add=["urgent"], remove=["unread"], now=NOW + MINUTE)
    message = agentmail.message(INBOX, message_id)
    assert message is not None
    assert labels == message.labels == ("received", "urgent")
    assert (message.created_at, message.updated_at) == (NOW, NOW + MINUTE)
    agentmail.delete(INBOX, message_id, now=NOW)
    assert agentmail.message(INBOX, message_id) is None


def test_a_subscription_creates_the_inboxes_and_pods_that_it_names(agentmail: AgentMail) -> None:
    agentmail.know(Subscribe(inbox_ids=[INBOX], pod_ids=["pod"]), now=NOW)
    assert agentmail.inboxes() == (INBOX,)
    agentmail.add_pod("another", now=NOW + MINUTE)
    assert [pod["pod_id"] for pod in parsed(ask(agentmail, "GET", "/pods"))["pods"]] == ["another", "pod", POD]


def test_an_event_is_for_a_subscription_to_the_pod_of_its_inbox(agentmail: AgentMail) -> None:
    agentmail.add_inbox(INBOX, pod_id="pod", now=NOW)
    frame = {"event_type": "message.received", "message": {"inbox_id": INBOX}}
    assert agentmail.mismatch(Subscribe(pod_ids=["pod"]), frame, None) is None
    agentmail.add_inbox(INBOX, pod_id=POD, now=NOW)
    assert "listens to pod_ids pod" in (agentmail.mismatch(Subscribe(pod_ids=["pod"]), frame, None) or "")


def test_a_mail_is_in_listings_once_the_index_delay_has_passed(agentmail: AgentMail) -> None:
    agentmail.index_after(60)
    message_id = agentmail.deliver(inbox_id=INBOX, now=NOW).value.message.message_id
    path = f"/inboxes/{INBOX}/messages"
    assert parsed(ask(agentmail, "GET", path, now=NOW + MINUTE * 0.99))["count"] == 0
    assert parsed(ask(agentmail, "GET", f"{path}/{message_id}"))["message_id"] == message_id
    assert parsed(ask(agentmail, "GET", path, now=NOW + MINUTE))["count"] == 1


def test_a_request_returns_the_events_that_it_causes(agentmail: AgentMail) -> None:
    agentmail.add_inbox(INBOX, now=NOW)
    response = ask(agentmail, "POST", f"/inboxes/{INBOX}/messages/send", {"to": INBOX})
    message_id = parsed(response)["message_id"]
    sent, delivered, received = response.events
    assert isinstance(sent, MessageSentEvent)
    assert isinstance(delivered, MessageDeliveredEvent)
    assert isinstance(received, MessageReceivedEvent)
    assert sent.send.message_id == delivered.delivery.message_id == received.message.message_id == message_id
    assert ask(agentmail, "GET", f"/inboxes/{INBOX}/messages").events == ()


def test_a_head_is_answered_like_a_get(agentmail: AgentMail) -> None:
    assert ask(agentmail, "HEAD", "/inboxes") == ask(agentmail, "GET", "/inboxes")


def test_no_repr_has_an_api_key() -> None:
    request = RestRequest(
        method="GET", origin="", raw_path="/", headers={"authorization": "Bearer am_key"}, body=b"am_key"
    )
    assert "am_key" not in repr(request)
    assert "am_key" not in repr(KeyRing(api_keys={"am_key": None}))


# The route table


def call_name(route: Route) -> str:
    return f"{route.method} {'/'.join(route.pattern)}"


def filled(route: Route) -> str:
    """Return a path of the call, with ids that exist where the path is looked up before the permission."""
    values = {"{inbox}": INBOX, "{pod}": POD}
    return "/".join(values.get(segment, segment.strip("{}")) for segment in route.pattern[2:])


def refusal(route: Route, permissions: Collection[str]) -> str | None:
    """Return the permission that a key with some permissions lacks for a call."""
    agentmail = AgentMail(keys=KeyRing(permissions=permissions), now=NOW)
    agentmail.add_inbox(INBOX, now=NOW)
    response = ask(agentmail, route.method, f"/{filled(route)}")
    if response.status != 403:
        return None
    return str(json.loads(response.body)["fix"]).split("'")[1]


@pytest.mark.parametrize("route", ROUTES.routes, ids=call_name)
def test_a_call_requires_its_permission_and_no_other(route: Route) -> None:
    assert route.permission in PERMISSIONS
    assert refusal(route, set(PERMISSIONS) - {route.permission}) == route.permission
    assert refusal(route, {route.permission}) is None


@pytest.mark.parametrize("route", ROUTES.routes, ids=call_name)
def test_a_call_requires_a_key(route: Route) -> None:
    agentmail = AgentMail(keys=KeyRing(api_keys={"am_other"}), now=NOW)
    assert ask(agentmail, route.method, f"/{filled(route)}").status == 401


@pytest.mark.parametrize("route", ROUTES.routes, ids=call_name)
def test_the_function_of_a_call_takes_the_parameters_of_its_path(route: Route) -> None:
    names = [segment[1:-1] for segment in route.pattern if segment.startswith("{")]
    bound = inspect.signature(route.function).bind("call", **dict.fromkeys(names))
    assert set(names) == bound.arguments.keys() - {"call"}


def test_each_call_is_in_the_table_once() -> None:
    calls = [(route.method, tuple(s if s[:1] != "{" else "{}" for s in route.pattern)) for route in ROUTES.routes]
    assert len(calls) == len(set(calls)) > 30


@pytest.mark.parametrize("resource", RESOURCES)
def test_an_unknown_resource_in_the_path_is_a_404_whatever_the_key_may_do(resource: str) -> None:
    agentmail = AgentMail(keys=KeyRing(permissions=()), now=NOW)
    route = next(route for route in ROUTES.routes if f"{{{resource}}}" in route.pattern)
    path = "/".join(segment.strip("{}") for segment in route.pattern[2:])
    assert ask(agentmail, route.method, f"/{path}").status == 404


@pytest.mark.parametrize(("method", "path"), [("PUT", "/inboxes"), ("GET", "/nothing"), ("GET", "/inboxes/a/b")])
def test_an_unknown_call_says_what_it_was(method: str, path: str, agentmail: AgentMail) -> None:
    response = ask(agentmail, method, path)
    assert response.status == 404
    assert json.loads(response.body)["message"] == f"FakeAgentMail has no {method} /v0{path}"
