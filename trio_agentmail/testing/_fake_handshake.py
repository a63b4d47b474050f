"""The request for a WebSocket, and whether AgentMail grants it."""

from collections.abc import Collection, Mapping
from urllib.parse import parse_qs

import attrs
import orjson
import trio
import trio_websocket

from ._fake_faults import RejectHandshake

__all__ = ["Handshake", "bearer", "read_handshake", "refused_key", "rejection"]


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


def rejection(
    handshake: Handshake, api_keys: Collection[str] | None, permissions: Collection[str] | None
) -> RejectHandshake | None:
    """What AgentMail answers to a request that it does not grant.

    Args:
        api_keys: The keys that it knows; `None`: any.
        permissions: What the key may do; `None`: everything.
    """
    if handshake.path != "/v0":
        return _rejection(404, "not_found", "there is nothing here")
    refusal = refused_key(handshake.key, api_keys)
    if refusal is not None:
        return _rejection(401, *refusal)
    if permissions is not None and not permissions:
        return _rejection(403, "missing_permission", "this API key may not do anything")
    return None


def bearer(authorization: str) -> str:
    """The API key in an `Authorization` header; `""`: there is none."""
    key = authorization.removeprefix("Bearer ")  # "case-sensitive", say AgentMail's documents
    return "" if key == authorization or key.split() != [key] else key


def refused_key(key: str, api_keys: Collection[str] | None) -> tuple[str, str] | None:
    """The name and the message of the error, unless there is a key, and a known one.

    Args:
        key: `""`: there is none.
        api_keys: The keys that are known; `None`: any.
    """
    if not key:
        return "missing_authorization", "an API key is required"
    if api_keys is not None and key not in api_keys:
        return "unknown_api_key", "this API key is not known"
    return None


def _rejection(status: int, name: str, message: str) -> RejectHandshake:
    body = orjson.dumps({"name": name, "message": message})
    return RejectHandshake(status, (("Content-Type", "application/json"),), body)
