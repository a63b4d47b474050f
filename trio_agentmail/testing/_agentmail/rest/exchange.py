"""A request to the REST API and its response, as plain data."""

from collections.abc import Mapping
from urllib.parse import unquote

import attrs

from trio_agentmail.events import Event

__all__ = ["RestRequest", "RestResponse"]


@attrs.frozen(kw_only=True)
class RestRequest:
    """A request to the REST API.

    Attributes:
        origin: The scheme and authority that the client used, like `https://api.agentmail.to`. Download URLs begin with
            it.
        raw_path: The path as it was sent, percent-encoded and without the query.
        query: The query as it was sent; `""` if there was none.
        headers: The headers, by their names in lower case. Not in the repr, since they contain the API key.
        body: The body. Not in the repr.
    """

    method: str
    origin: str
    raw_path: str
    query: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False, hash=False)
    body: bytes = attrs.field(default=b"", repr=False)

    @property
    def path(self) -> str:
        """The path without percent-encoding."""
        return unquote(self.raw_path)

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments of the path without percent-encoding."""
        # Split before decoding, since a Message-ID may contain a slash.
        return tuple(unquote(segment) for segment in self.raw_path.split("/"))


@attrs.frozen(kw_only=True)
class RestResponse:
    """The response to a request. The response to a HEAD is that of a GET, and its sender leaves out the body.

    Attributes:
        body: The body. Not in the repr.
        events: The events that the request has caused, in the order in which AgentMail pushes them.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    body: bytes = attrs.field(default=b"", repr=False)
    events: tuple[Event, ...] = ()
