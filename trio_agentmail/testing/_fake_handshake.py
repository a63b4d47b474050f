"""The request for a WebSocket, and whether AgentMail grants it."""

from collections.abc import Collection, Mapping
from urllib.parse import parse_qs

import attrs
import orjson
import trio
import trio_websocket

from ._fake_faults import RejectHandshake

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
    """

    path: str
    query: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False, hash=False)
    at: float


def read_handshake(request: trio_websocket.WebSocketRequest) -> Handshake:
    path, _, query = request.path.partition("?")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    return Handshake(path=path, query=query, headers=headers, at=trio.current_time())


def rejection(handshake: Handshake, api_keys: Collection[str] | None) -> RejectHandshake | None:
    """What AgentMail answers to a request that it does not grant.

    Args:
        api_keys: The keys that it knows; `None`: any.
    """
    if handshake.path != "/v0":
        return _rejection(404, "not_found", "there is nothing here")
    scheme, _, token = handshake.headers.get("authorization", "").partition(" ")
    key = token if scheme.lower() == "bearer" else parse_qs(handshake.query).get("api_key", [""])[-1]
    if not key:
        return _rejection(401, "missing_authorization", "an API key is required")
    if api_keys is not None and key not in api_keys:
        return _rejection(401, "unknown_api_key", "this API key is not known")
    return None


def _rejection(status: int, name: str, message: str) -> RejectHandshake:
    body = orjson.dumps({"name": name, "message": message})
    return RejectHandshake(status, (("Content-Type", "application/json"),), body)
