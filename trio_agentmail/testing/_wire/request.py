"""A recorded request to the REST API."""

from collections.abc import Mapping

import attrs

__all__ = ["Request"]


@attrs.define(kw_only=True)
class Request:
    """A request to the REST API.

    Attributes:
        path: The path, without the query and without percent-encoding.
        query: The query, or `""`.
        status: The status of the response, or `None` if there is none, or not yet.
        at: The time of its arrival, by Trio's clock.
        headers: The headers, with case-insensitive names. They are not in the repr, since they contain the API key.
        body: The body, for example for `json.loads`. It is not in the repr.
    """

    method: str
    path: str
    query: str
    status: int | None
    at: float
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False, eq=False)
    body: bytes = attrs.field(default=b"", repr=False, eq=False)
