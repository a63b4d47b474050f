"""The request for a WebSocket."""

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
    """The request with which a client asked for a WebSocket.

    Attributes:
        path: The path, without the query.
        query: The query; `""` if there was none. Not in the repr: the API key may be in it.
        headers: The headers, without `Host`. Names are in lower case, and the last of repeated ones counts. Not in the
            repr: the API key is in them.
        at: The time of its arrival, by Trio's clock.
        status: The HTTP status of the answer, 101 if the request was granted; `None`: it has not been answered.
        key: The API key; `""` if there was none. Not in the repr.
    """

    path: str
    query: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    at: float
    status: int | None = None
    key: str = attrs.field(repr=False)


@attrs.frozen
class Rejection:
    """The HTTP response to a handshake that is not granted."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def read_handshake(request: trio_websocket.WebSocketRequest) -> Handshake:
    path, _, query = request.path.partition("?")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    key = bearer(headers.get("authorization", "")) or parse_qs(query).get("api_key", [""])[-1]
    return Handshake(path=path, query=query, headers=headers, at=trio.current_time(), key=key)


def rejection(handshake: Handshake, keys: KeyRing) -> Rejection | None:
    """Return AgentMail's rejection of a handshake, or `None` if it is granted."""
    refusal: Refusal | None = not_found() if handshake.path != "/v0" else keys.websocket_refusal(handshake.key)
    if refusal is None:
        return None
    return Rejection(refusal.status, (("Content-Type", "application/json"),), orjson.dumps(refusal.answer))
