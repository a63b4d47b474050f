"""The base classes of the events from the server."""

import attrs

__all__ = ["FromServer", "ServerEvent"]


class _JournalMark:
    """The slot in which a journal marks an event that it has delivered.

    `Journal.ack` compares the mark with the journal's own name, and raises `JournalMismatchError` for an event of
    another journal. The mark is a plain slot and not an attrs field, because it is not part of the event's value:
    `attrs.evolve`, comparison, the repr and the constructor ignore it.
    """

    __slots__ = ("_given_by",)


@attrs.frozen(kw_only=True)
class FromServer(_JournalMark):
    """The base class of all events that the server sends."""

    # A decoded event keeps the bytes, because a non-ASCII str would also cache a second copy of itself in UTF-8.
    _raw: str | bytes = attrs.field(default="", eq=False, repr=False)
    origin: str = attrs.field(default="live", eq=False)
    attempt: int = attrs.field(default=1, eq=False, repr=False)

    @property
    def raw(self) -> str:
        """The text as received."""
        raw = self._raw
        return raw if isinstance(raw, str) else raw.decode(errors="backslashreplace")


@attrs.frozen(kw_only=True)
class ServerEvent(FromServer):
    """The base class of all events that have an `event_type`. The field without a default is the payload."""

    event_id: str | None = None
