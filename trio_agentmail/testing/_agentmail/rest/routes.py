"""The route table: the function that answers each call, and the permission that the call requires.

The module of each resource has its own table, and `api.py` joins these into one. A decorator adds a function to a
table:

    routes = RouteTable()

    @routes.get("/inboxes/{inbox}/messages", permission="message_read")
    def list_messages(call: Call, inbox: Inbox) -> Answer: ...

A segment in braces is a parameter, which the function gets as text. `{inbox}` and `{pod}` are special: the function
gets the inbox or pod itself. It is looked up before the permission is checked, so that an unknown one is a 404 for
every key.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from .call import Answer

__all__ = ["Route", "RouteTable"]

F = TypeVar("F", bound=Callable[..., Answer])

PREFIX = ("", "v0")


@attrs.frozen
class Route:
    """A route of the API.

    Attributes:
        pattern: The segments of the path.
        permission: The permission that the call requires.
        function: The function that answers the call. It takes the call and, by name, the parameters of the path.
    """

    method: str
    pattern: tuple[str, ...]
    permission: str
    function: Callable[..., Answer]

    def match(self, segments: Sequence[str]) -> dict[str, Any] | None:
        """Return the parameters in a path, or `None` if the path does not match."""
        if len(segments) != len(self.pattern):
            return None
        parameters: dict[str, Any] = {}
        for expected, segment in zip(self.pattern, segments, strict=True):
            if expected.startswith("{"):
                parameters[expected[1:-1]] = segment
            elif segment != expected:
                return None
        return parameters


class RouteTable:
    """The routes of a resource or, joined from other tables, of the whole API."""

    def __init__(self, *tables: "RouteTable") -> None:
        self.routes: list[Route] = [route for table in tables for route in table.routes]

    def get(self, path: str, *, permission: str) -> Callable[[F], F]:
        """Return a decorator that adds a GET. `post`, `patch` and `delete` add calls with these methods."""
        return self._add("GET", path, permission)

    def post(self, path: str, *, permission: str) -> Callable[[F], F]:
        return self._add("POST", path, permission)

    def patch(self, path: str, *, permission: str) -> Callable[[F], F]:
        return self._add("PATCH", path, permission)

    def delete(self, path: str, *, permission: str) -> Callable[[F], F]:
        return self._add("DELETE", path, permission)

    def find(self, method: str, segments: Sequence[str]) -> tuple[Route, dict[str, Any]] | None:
        """Return the route of a request and the parameters in its path, or `None` if the fake has no such call."""
        if segments[-1] == "search":
            return None  # the fake does not have these calls; without this, "search" would be treated as an id
        for route in self.routes:
            if route.method == method and (parameters := route.match(segments)) is not None:
                return route, parameters
        return None

    def _add(self, method: str, path: str, permission: str) -> Callable[[F], F]:
        def add(function: F) -> F:
            self.routes.append(Route(method, (*PREFIX, *path.split("/")[1:]), permission, function))
            return function

        return add
