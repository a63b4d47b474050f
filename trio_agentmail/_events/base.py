"""What all events from the server have in common."""

import attrs

__all__ = ["FromServer", "ServerEvent"]


class _JournalMark:
    """The slot in which a journal marks an event that it handed out.

    `Journal.ack` compares the mark with the journal's own name, so that an event of another journal raises
    `JournalMismatchError`. It is a plain slot and not an attrs field because it is not part of the event's value:
    `attrs.evolve`, comparison, the repr and the constructor ignore it.
    """

    __slots__ = ("_given_by",)


@attrs.frozen(kw_only=True)
class FromServer(_JournalMark):
    """The base of everything that the server sends."""

    # A decoded event keeps the bytes that were parsed: a non-ASCII str would keep a second copy of itself in UTF-8.
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
    """The base of every event that has an `event_type`. A field without a default is the payload."""

    event_id: str | None = None
