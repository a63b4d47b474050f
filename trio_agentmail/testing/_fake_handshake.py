"""The request for a WebSocket, and whether AgentMail grants it."""

from collections.abc import Mapping
from urllib.parse import parse_qs

import attrs
import orjson
import trio
import trio_websocket

from ._agentmail.keys import KeyRing, bearer
from ._agentmail.refusals import not_found
from ._faults.connections import RejectHandshake

__all__ = ["Handshake", "read_handshake", "rejection"]


@attrs.frozen(kw_only=True)
class Handshake:
    """The request with which a client asked for a WebSocket.

    Attributes:
        path: The path, without the query.
        query: The query; `""` if there was none. Not in the repr: the API key may be in it.
        headers: The headers, without `Host`; the names in lower case, of repeated ones the last. Not in the
            repr: the API key is in them.
        at: When it came, by Trio's clock.
        status: The HTTP status with which it was answered, 101 if it was granted; `None`: it was not.
        key: The API key, `""` if there was none. Not in the repr.
    """

    path: str
    query: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False, hash=False)
    at: float
    status: int | None = None
    key: str = attrs.field(repr=False)


def read_handshake(request: trio_websocket.WebSocketRequest) -> Handshake:
    path, _, query = request.path.partition("?")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    key = bearer(headers.get("authorization", "")) or parse_qs(query).get("api_key", [""])[-1]
    return Handshake(path=path, query=query, headers=headers, at=trio.current_time(), key=key)


def rejection(handshake: Handshake, keys: KeyRing) -> RejectHandshake | None:
    """Return AgentMail's rejection of a handshake, or `None` if it grants the handshake."""
    refusal = keys.websocket_refusal(handshake.key) if handshake.path == "/v0" else not_found()
    if refusal is None:
        return None
    return RejectHandshake(refusal.status, (("Content-Type", "application/json"),), orjson.dumps(refusal.answer))
