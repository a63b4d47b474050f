"""A request to the REST API, as it is recorded."""

from collections.abc import Mapping

import attrs

__all__ = ["Request"]


@attrs.define(kw_only=True)
class Request:
    """A request to the REST API.

    Attributes:
        path: The path, without the query and without percent-encoding.
        query: The query; `""` if there was none.
        status: The status of the answer; `None`: it has not been answered.
        at: The time of its arrival, by Trio's clock.
        headers: The headers, whose names are found in any case. Not in the repr: the API key is in them.
        body: The body, for example for `json.loads`. Not in the repr.
    """

    method: str
    path: str
    query: str
    status: int | None
    at: float
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False, eq=False)
    body: bytes = attrs.field(default=b"", repr=False, eq=False)
