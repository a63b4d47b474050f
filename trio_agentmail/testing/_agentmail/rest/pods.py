"""The REST API of pods."""

from typing import Any

from trio_agentmail.testing._agentmail.mail.directory import Pod
from trio_agentmail.testing._agentmail.mail.events import new_id
from trio_agentmail.testing._agentmail.refusals import Refusal

from .body import key, line, text
from .call import Answer, Call, listing
from .listing import read_query, take_page
from .routes import RouteTable

__all__ = ["routes"]

routes = RouteTable()


@routes.get("/pods", permission="pod_read")
def list_pods(call: Call) -> Answer:
    query = read_query(call.params, call.permissions)
    pods, token = take_page(call.store.directory.pods_in_order, query, lambda _: True)
    return listing("pods", [_item(pod) for pod in pods], query, token)


@routes.post("/pods", permission="pod_create")
def create_pod(call: Call) -> Answer:
    body = call.body()
    name = line(body, "name")
    client_id = key(text(body, "client_id"), "client_id")
    for pod in call.store.directory.pods.values():
        if client_id is not None and pod.client_id == client_id:
            return _item(pod)
    return _item(call.store.directory.add_pod(new_id(), call.now, name, client_id))


@routes.get("/pods/{pod_id}", permission="pod_read")
def get_pod(call: Call, pod_id: str) -> Answer:
    return _item(call.pod(pod_id))


@routes.delete("/pods/{pod_id}", permission="pod_delete")
def delete_pod(call: Call, pod_id: str) -> Answer:
    pod = call.pod(pod_id)
    if any(inbox.pod_id == pod_id for inbox in call.store.directory.inboxes.values()):
        raise Refusal(409, "cannot_delete", "the pod has inboxes")
    call.store.directory.delete_pod(pod)
    return None


def _item(pod: Pod) -> dict[str, Any]:
    client_id = {} if pod.client_id is None else {"client_id": pod.client_id}
    return {
        "pod_id": pod.pod_id,
        "name": pod.name,
        **client_id,
        "created_at": pod.created_at,
        "updated_at": pod.created_at,
    }
