"""The REST API of inboxes, and of the pods that they are in."""

import re
from typing import Any

from trio_agentmail.testing._mail.events import new_id
from trio_agentmail.testing._mail.store import Inbox, Pod

from .body import key, line, text
from .call import Answer, Call, listing
from .errors import Refusal, invalid, no_such_call, unprocessable
from .listing import read_query, take_page

__all__ = ["answer_inboxes", "answer_pods"]

USERNAME = re.compile("[a-z0-9]([a-z0-9._+-]{0,62}[a-z0-9])?")
DOMAIN = re.compile("([a-z0-9-]{1,63}[.])+[a-z]{2,63}")
DEFAULT_DOMAIN = "agentmail.to"

MAX_METADATA = 256
"""Keys that an inbox may have, and characters that a key or a string may have: by AgentMail's documentation."""


def answer_inboxes(call: Call, segments: list[str], pod_id: str | None = None) -> Answer:
    """What `/inboxes` answers, of all inboxes or of those in a pod.

    Args:
        segments: The method, and what follows `/inboxes`.
    """
    match segments:
        case ["GET"]:
            return _list(call, pod_id)
        case ["POST"]:
            return _item(call, _create(call, pod_id))
        case ["GET", inbox_id]:
            call.require("inbox_read")
            return _item(call, call.inbox(inbox_id, pod_id))
        case ["PATCH", inbox_id]:
            return _item(call, _update(call, inbox_id, pod_id))
        case ["DELETE", inbox_id]:
            call.require("inbox_delete")
            call.store.delete_inbox(call.inbox(inbox_id, pod_id), call.now)
            return None
    raise no_such_call(call.request)


def answer_pods(call: Call, segments: list[str]) -> Answer:
    """What `/pods` answers.

    Args:
        segments: The method, and what follows `/pods`.
    """
    match segments:
        case ["GET"]:
            call.require("pod_read")
            query = read_query(call.params, call.permissions)
            pods, token = take_page(call.store.pods_in_order, query, lambda _: True)
            return listing("pods", [_pod(pod) for pod in pods], query, token)
        case ["POST"]:
            return _pod(_create_pod(call))
        case ["GET", pod_id]:
            call.require("pod_read")
            return _pod(call.pod(pod_id))
        case ["DELETE", pod_id]:
            call.require("pod_delete")
            pod = call.pod(pod_id)
            if pod_id in call.store.pods.values():
                raise Refusal(409, "cannot_delete", "there are inboxes in the pod")
            call.store.delete_pod(pod)
            return None
    raise no_such_call(call.request)


def _list(call: Call, pod_id: str | None) -> Answer:
    call.require("inbox_read")
    query = read_query(call.params, call.permissions)
    inboxes, token = take_page(call.store.inboxes_in_order, query, lambda inbox: call.is_in(pod_id, inbox.inbox_id))
    return listing("inboxes", [_item(call, inbox) for inbox in inboxes], query, token)


def _create(call: Call, pod_id: str | None) -> Inbox:
    call.require("inbox_create")
    body = call.body()
    client_id = key(text(body, "client_id"), "client_id")
    display_name = line(body, "display_name")
    metadata = _merged({}, body)
    if body.get("status", "active") != "active":
        raise unprocessable("FakeAgentMail has no paused inboxes")
    username = (text(body, "username") or f"inbox-{new_id()[:13]}").lower()
    domain = (text(body, "domain") or DEFAULT_DOMAIN).lower()
    if not USERNAME.fullmatch(username):
        raise invalid("username", "what stands before the @ of an address")
    if not DOMAIN.fullmatch(domain):
        raise invalid("domain", "a domain")
    if client_id is not None:
        for inbox in call.store.inboxes.values():
            if inbox.client_id == client_id and call.is_in(pod_id, inbox.inbox_id):
                return inbox
    inbox_id = f"{username}@{domain}"
    if call.store.inbox(inbox_id) is not None:
        raise Refusal(403, "resource_taken", f"the address {inbox_id} is taken", name="IsTakenError")
    inbox = call.store.add_inbox(inbox_id, call.now, pod_id)
    inbox.display_name, inbox.client_id, inbox.metadata = display_name, client_id, metadata
    return inbox


def _update(call: Call, inbox_id: str, pod_id: str | None) -> Inbox:
    call.require("inbox_update")
    inbox = call.inbox(inbox_id, pod_id)
    body = call.body(with_nulls=True)
    if body.get("status", "active") != "active":
        raise unprocessable("FakeAgentMail has no paused inboxes")
    if body.keys().isdisjoint({"display_name", "metadata", "status"}):
        raise invalid("display_name", "there, or else metadata, or status")
    if body.get("metadata") == {}:
        raise invalid("metadata", "null to clear it, and not an empty object")
    display_name = line(body, "display_name") if "display_name" in body else inbox.display_name
    metadata = _merged(inbox.metadata, body) if "metadata" in body else inbox.metadata
    inbox.display_name, inbox.metadata, inbox.updated_at = display_name, metadata, call.now
    return inbox


def _merged(metadata: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The metadata after a change: what is null goes, one by one or altogether."""
    change = body.get("metadata")
    if change is None:
        return {}
    if not isinstance(change, dict) or not all(
        isinstance(value, str | int | float | None) for value in change.values()
    ):
        raise invalid("metadata", "an object of strings, numbers and booleans")
    if any(len(text) > MAX_METADATA for text in (*change, *change.values()) if isinstance(text, str)):
        raise invalid("metadata", f"of keys and strings of at most {MAX_METADATA} characters")
    merged = {name: value for name, value in (metadata | change).items() if value is not None}
    if max(len(change), len(merged)) > MAX_METADATA:
        raise invalid("metadata", f"of at most {MAX_METADATA} keys")
    return merged


def _item(call: Call, inbox: Inbox) -> dict[str, Any]:
    optional = {"display_name": inbox.display_name, "client_id": inbox.client_id, "metadata": inbox.metadata or None}
    return {
        "inbox_id": inbox.inbox_id,
        "pod_id": call.store.pods[inbox.inbox_id.lower()],
        "email": inbox.inbox_id,
        **{name: value for name, value in optional.items() if value is not None},
        "created_at": inbox.created_at,
        "updated_at": inbox.updated_at,
    }


def _create_pod(call: Call) -> Pod:
    call.require("pod_create")
    body = call.body()
    name = line(body, "name")
    client_id = key(text(body, "client_id"), "client_id")
    for pod in call.store.pods_by_id.values():
        if client_id is not None and pod.client_id == client_id:
            return pod
    return call.store.add_pod(new_id(), call.now, name, client_id)


def _pod(pod: Pod) -> dict[str, Any]:
    client_id = {} if pod.client_id is None else {"client_id": pod.client_id}
    return {
        "pod_id": pod.pod_id,
        "name": pod.name,
        **client_id,
        "created_at": pod.created_at,
        "updated_at": pod.created_at,
    }
