"""The request for a WebSocket, and whether AgentMail grants it."""

from collections.abc import Collection, Mapping
from urllib.parse import parse_qs

import attrs
import orjson
import trio
import trio_websocket

from ._fake_faults import RejectHandshake

__all__ = ["Handshake", "read_handshake", "refused_key", "rejection"]


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
    key_in_query = parse_qs(handshake.query).get("api_key", [""])[-1]
    refusal = refused_key(handshake.headers.get("authorization", ""), key_in_query, api_keys)
    return None if refusal is None else _rejection(401, *refusal)


def refused_key(authorization: str, key_in_query: str, api_keys: Collection[str] | None) -> tuple[str, str] | None:
    """The name and the message of the error, unless there is a key, and a known one.

    Args:
        authorization: The header's value; `""`: there is none.
        key_in_query: The key that is used when the header has none.
        api_keys: The keys that are known; `None`: any.
    """
    scheme, _, token = authorization.partition(" ")
    key = token if scheme.lower() == "bearer" else key_in_query
    if not key:
        return "missing_authorization", "an API key is required"
    if api_keys is not None and key not in api_keys:
        return "unknown_api_key", "this API key is not known"
    return None


def _rejection(status: int, name: str, message: str) -> RejectHandshake:
    body = orjson.dumps({"name": name, "message": message})
    return RejectHandshake(status, (("Content-Type", "application/json"),), body)
