"""The REST API of inboxes, for all inboxes or those in a pod."""

import re
from typing import Any

from trio_agentmail.testing._agentmail.mail.directory import Inbox, Pod
from trio_agentmail.testing._agentmail.mail.events import new_id
from trio_agentmail.testing._agentmail.refusals import Refusal, invalid, unprocessable

from .body import key, line, text
from .call import Answer, Call, listing
from .listing import read_query, take_page
from .routes import RouteTable

__all__ = ["routes"]

USERNAME = re.compile("[a-z0-9]([a-z0-9._+-]{0,62}[a-z0-9])?")
DOMAIN = re.compile("([a-z0-9-]{1,63}[.])+[a-z]{2,63}")
DEFAULT_DOMAIN = "agentmail.to"

MAX_METADATA = 256
"""Maximum number of keys in an inbox's metadata, and of characters in one of its keys or strings. (Source: AgentMail's
documentation.)"""

routes = RouteTable()


@routes.get("/inboxes", permission="inbox_read")
@routes.get("/pods/{pod}/inboxes", permission="inbox_read")
def list_inboxes(call: Call, pod: Pod | None = None) -> Answer:
    query = read_query(call.params, call.permissions)
    inboxes, token = take_page(call.store.directory.inboxes_in_order, query, lambda inbox: _is_in(pod, inbox))
    return listing("inboxes", [_item(inbox) for inbox in inboxes], query, token)


@routes.post("/inboxes", permission="inbox_create")
@routes.post("/pods/{pod}/inboxes", permission="inbox_create")
def create_inbox(call: Call, pod: Pod | None = None) -> Answer:
    body = call.body()
    client_id = key(text(body, "client_id"), "client_id")
    display_name = line(body, "display_name")
    metadata = _merged({}, body)
    if body.get("status", "active") != "active":
        raise unprocessable("FakeAgentMail has no paused inboxes")
    username = (text(body, "username") or f"inbox-{new_id()[:13]}").lower()
    domain = (text(body, "domain") or DEFAULT_DOMAIN).lower()
    if not USERNAME.fullmatch(username):
        raise invalid("username", "the part before the @ of an address")
    if not DOMAIN.fullmatch(domain):
        raise invalid("domain", "a domain name")
    directory = call.store.directory
    if client_id is not None:
        for inbox in directory.inboxes.values():
            if inbox.client_id == client_id and _is_in(pod, inbox):
                return _item(inbox)
    inbox_id = f"{username}@{domain}"
    if directory.inbox(inbox_id) is not None:
        raise Refusal(403, "resource_taken", f"the address {inbox_id} is taken", name="IsTakenError")
    inbox = directory.add_inbox(inbox_id, call.now, None if pod is None else pod.pod_id)
    inbox.display_name, inbox.client_id, inbox.metadata = display_name, client_id, metadata
    return _item(inbox)


@routes.get("/inboxes/{inbox_id}", permission="inbox_read")
@routes.get("/pods/{pod}/inboxes/{inbox_id}", permission="inbox_read")
def get_inbox(call: Call, inbox_id: str, pod: Pod | None = None) -> Answer:
    return _item(call.inbox(inbox_id, pod))


@routes.patch("/inboxes/{inbox_id}", permission="inbox_update")
@routes.patch("/pods/{pod}/inboxes/{inbox_id}", permission="inbox_update")
def update_inbox(call: Call, inbox_id: str, pod: Pod | None = None) -> Answer:
    inbox = call.inbox(inbox_id, pod)
    body = call.body(with_nulls=True)
    if body.get("status", "active") != "active":
        raise unprocessable("FakeAgentMail has no paused inboxes")
    if body.keys().isdisjoint({"display_name", "metadata", "status"}):
        raise invalid("display_name", "given, or else metadata or status")
    if body.get("metadata") == {}:
        raise invalid("metadata", "null to clear it, and not an empty object")
    display_name = line(body, "display_name") if "display_name" in body else inbox.display_name
    metadata = _merged(inbox.metadata, body) if "metadata" in body else inbox.metadata
    inbox.display_name, inbox.metadata, inbox.updated_at = display_name, metadata, call.now
    return _item(inbox)


@routes.delete("/inboxes/{inbox_id}", permission="inbox_delete")
@routes.delete("/pods/{pod}/inboxes/{inbox_id}", permission="inbox_delete")
def delete_inbox(call: Call, inbox_id: str, pod: Pod | None = None) -> Answer:
    call.store.delete_inbox(call.inbox(inbox_id, pod), call.now)
    return None


def _is_in(pod: Pod | None, inbox: Inbox) -> bool:
    return pod is None or inbox.pod_id == pod.pod_id


def _merged(metadata: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata after a change. A null value removes its key, and null instead of an object removes all keys.

    Raises:
        Refusal: The change is invalid, or exceeds the limits.
    """
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


def _item(inbox: Inbox) -> dict[str, Any]:
    optional = {"display_name": inbox.display_name, "client_id": inbox.client_id, "metadata": inbox.metadata or None}
    return {
        "inbox_id": inbox.inbox_id,
        "pod_id": inbox.pod_id,
        "email": inbox.inbox_id,
        **{name: value for name, value in optional.items() if value is not None},
        "created_at": inbox.created_at,
        "updated_at": inbox.updated_at,
    }
