"""The request for a WebSocket, and whether AgentMail grants it."""

from collections.abc import Collection, Mapping
from urllib.parse import parse_qs

import attrs
import orjson
import trio
import trio_websocket

from ._faults.connections import RejectHandshake
from ._rest.errors import Refusal, not_found, powerless, refused_key

__all__ = ["Handshake", "bearer", "read_handshake", "rejection"]


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
    refusal = _refusal(handshake, api_keys, permissions)
    if refusal is None:
        return None
    return RejectHandshake(refusal.status, (("Content-Type", "application/json"),), orjson.dumps(refusal.answer))


def _refusal(
    handshake: Handshake, api_keys: Collection[str] | None, permissions: Collection[str] | None
) -> Refusal | None:
    if handshake.path != "/v0":
        return not_found()
    if (refusal := refused_key(handshake.key, api_keys)) is not None:
        return refusal
    return powerless() if permissions is not None and not permissions else None


def bearer(authorization: str) -> str:
    """The API key in an `Authorization` header; `""`: there is none."""
    key = authorization.removeprefix("Bearer ")  # "case-sensitive", say AgentMail's documents
    return "" if key == authorization or key.split() != [key] else key
