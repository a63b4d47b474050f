"""The handshake of a WebSocket, as recorded, and AgentMail's answer to it."""

from collections.abc import Mapping
from urllib.parse import parse_qs

import attrs
import orjson
import trio
import trio_websocket

from trio_agentmail.testing._agentmail.keys import KeyRing, bearer
from trio_agentmail.testing._agentmail.refusals import Refusal, not_found

__all__ = ["Handshake", "Rejection", "read_handshake", "rejection"]


@attrs.define(kw_only=True)
class Handshake:
    """A client's HTTP request for a WebSocket.

    Attributes:
        path: The path, without the query.
        query: The query, or `""`. It is not in the repr, since it may contain the API key.
        headers: The headers without `Host`, with names in lower case. The last of repeated headers counts. They are not
            in the repr, since they may contain the API key.
        at: The time of its arrival, by Trio's clock.
        status: The HTTP status of the response, 101 if the request was accepted, or `None` before the response.
        key: The API key, or `""`. It is not in the repr.
    """

    path: str
    query: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    at: float
    status: int | None = None
    key: str = attrs.field(repr=False)


@attrs.frozen
class Rejection:
    """The HTTP response that rejects a handshake."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def read_handshake(request: trio_websocket.WebSocketRequest) -> Handshake:
    path, _, query = request.path.partition("?")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    key = bearer(headers.get("authorization", "")) or parse_qs(query).get("api_key", [""])[-1]
    return Handshake(path=path, query=query, headers=headers, at=trio.current_time(), key=key)


def rejection(handshake: Handshake, keys: KeyRing) -> Rejection | None:
    """Return AgentMail's rejection of a handshake, or `None` if the handshake is accepted."""
    refusal: Refusal | None = not_found() if handshake.path != "/v0" else keys.websocket_refusal(handshake.key)
    if refusal is None:
        return None
    return Rejection(refusal.status, (("Content-Type", "application/json"),), orjson.dumps(refusal.answer))
