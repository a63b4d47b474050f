"""What the caller says: whom to talk to, and what to listen to."""

import ipaddress
import math
import ssl
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

import attrs

from ._event_types import EVENT_TYPES
from .events import EventType

__all__ = ["AgentMailEnvironment", "ReconnectPolicy", "Recovery", "Settings", "Subscribe"]


def _strings(value: Iterable[str] | None, field: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | bytes):
        raise TypeError(f"{field} takes a list of strings, not one string: write {field}=[{value!r}]")
    strings = tuple(value)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{field} takes a list of non-empty strings; one item is {item!r}")
    if not strings:
        raise ValueError(f"{field} is empty, which would match nothing; leave it out to match everything")
    return strings


# A converter of its own for each, since attrs' plug-in for mypy reads the argument's type from its signature.
def _inbox_ids(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return _strings(value, "inbox_ids")


def _pod_ids(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return _strings(value, "pod_ids")


def _event_types(value: Iterable[EventType | str] | None) -> tuple[str, ...] | None:
    return _strings(value, "event_types")


def similar(name: str, names: Iterable[str]) -> str:
    """A question to whoever may have mistyped one of these names: `"; did you mean 'cut'?"`; or nothing."""
    import difflib  # here, since hardly anybody needs it

    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@attrs.frozen
class Subscribe:
    """What to listen to: the frame that is sent on every connection, and confirmed by AgentMail.

    Each filter is optional; none at all means all that the API key may see. Without `event_types`, AgentMail
    leaves out spam, blocked and unauthenticated mail, and asking for those needs the permissions
    `label_spam_read`, `label_blocked_read` and `label_unauthenticated_read` (source: AgentMail's public
    documentation of its WebSocket).

    Args:
        inbox_ids: Inboxes, for example `["agent@agentmail.to"]`.
        pod_ids: Pods.
        event_types: For example `["message.received", "message.bounced"]`; `EventType` has them all. Others are sent
            as they are, since new types appear, and their events come as `UnknownEvent`; but a `UserWarning` says so,
            with what may have been meant.

    Raises:
        TypeError: a bare string where a list belongs, or an item that is not a string.
        ValueError: an empty list.
    """

    inbox_ids: tuple[str, ...] | None = attrs.field(default=None, converter=_inbox_ids)
    pod_ids: tuple[str, ...] | None = attrs.field(default=None, converter=_pod_ids)
    event_types: tuple[str, ...] | None = attrs.field(default=None, converter=_event_types)

    def __attrs_post_init__(self) -> None:
        for event_type in self.event_types or ():
            if event_type not in EVENT_TYPES:
                warnings.warn(
                    f"AgentMail has no event type {event_type!r}, as far as this package knows"
                    f"{similar(event_type, EVENT_TYPES)}",
                    stacklevel=3,  # whoever calls the __init__ that attrs has written
                )


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_slash(url: str) -> str:
    return url.rstrip("/") if isinstance(url, str) else url


@attrs.frozen
class AgentMailEnvironment:
    """Where AgentMail is: the base of its REST API and of its WebSocket, both without the `/v0`.

    `AgentMailEnvironment.PROD` and `AgentMailEnvironment.EU_PROD` are AgentMail's own (source: its official
    Python SDK, `environment.py`).

    Args:
        http: Base URL of the REST API, `https://…`.
        websockets: Base URL of the WebSocket, `wss://…`.
        insecure: Accept `http://` and `ws://` for a host that is not this machine. The API key then crosses
            the network unencrypted.

    Raises:
        TypeError: not a string.
        ValueError: a URL of another scheme, without a host, with a user name, a query or a fragment, or with the
            `/v0`; or a plain one for another machine without `insecure=True`.
    """

    http: str = attrs.field(converter=_without_slash)
    websockets: str = attrs.field(converter=_without_slash)
    insecure: bool = False

    PROD: ClassVar["AgentMailEnvironment"]
    EU_PROD: ClassVar["AgentMailEnvironment"]

    def __attrs_post_init__(self) -> None:
        for field, url, plain in (("http", self.http, "http"), ("websockets", self.websockets, "ws")):
            self._check(field, url, plain)

    def _check(self, field: str, url: str, plain: str) -> None:
        # Neither the URL nor the parser's words on it are shown: somebody may have put a key into it.
        if not isinstance(url, str):
            raise TypeError(f"{field} must be a URL as a string, not {type(url).__name__}")
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in (plain, plain + "s") and parts.hostname and parts.port != 0
            is_url = is_url and url.isascii() and url.isprintable() and " " not in url
            (parts.hostname or "").encode("idna")  # no label is empty or longer than 63 characters
        except ValueError:
            is_url = False
        if not is_url:
            other, others = ("websockets", "ws") if plain == "http" else ("http", "http")
            swapped = url.startswith((f"{others}://", f"{others}s://"))
            hint = f"; {others}:// and {others}s:// are for {other}" if swapped else ""
            raise ValueError(f"{field} must be a URL like {plain}s://host or {plain}://localhost:8000{hint}")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"{field} must hold neither a user name, a query nor a fragment")
        if "v0" in parts.path.split("/"):
            raise ValueError(f"{field} must be the base of the URLs, without /v0 and what follows it: {plain}s://host")
        if parts.scheme == plain and not self.insecure and not is_loopback(parts.hostname or ""):
            raise ValueError(
                f"{field} is a plain {plain}:// URL of another machine, and would send the API key in the "
                f"clear: use {plain}s://, or pass insecure=True if you mean it"
            )


AgentMailEnvironment.PROD = AgentMailEnvironment(http="https://api.agentmail.to", websockets="wss://ws.agentmail.to")
AgentMailEnvironment.EU_PROD = AgentMailEnvironment(http="https://api.agentmail.eu", websockets="wss://ws.agentmail.eu")


def _number(minimum: float, of: str = "") -> Callable[[object, "attrs.Attribute[float]", float], None]:
    def check(instance: object, attribute: "attrs.Attribute[float]", value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{attribute.name} takes a number{of}, not {value!r}")
        if not minimum <= value < math.inf:
            raise ValueError(f"{attribute.name} must be a finite number from {minimum}, not {value!r}")

    return check


def _seconds(minimum: float) -> Callable[[object, "attrs.Attribute[float]", float], None]:
    return _number(minimum, " of seconds")


@attrs.frozen
class ReconnectPolicy:
    """How a lost connection is made again.

    The wait before an attempt is drawn evenly from zero to a ceiling ("full jitter": many clients that lost one
    server do not come back at once), and the ceiling grows from attempt to attempt.

    Args:
        initial_delay: The first ceiling, in seconds.
        max_delay: The highest ceiling, in seconds.
        multiplier: By what the ceiling grows, from attempt to attempt.
        stable_after: Seconds that a subscription must have been in force for the ceiling to start over: a server
            that accepts and then drops is not hammered.
        refusal_grace: Seconds for which a stream that was subscribed bears with refusals of its handshake: 401, 403,
            404, a redirect, any other status that is fatal on entering, a certificate that cannot be verified. Services
            and what stands in front of them answer so while they are being deployed. It is counted from the first
            refusal since a handshake was last accepted, and it takes three refusals at least, even with 0.
        give_up_after: Seconds of outage after which the block ends with `ConnectionFailedError`. None: never.

    Raises:
        TypeError: not a number.
        ValueError: negative or not finite, or `max_delay` below `initial_delay`.
    """

    initial_delay: float = attrs.field(default=0.5, validator=_seconds(0))
    max_delay: float = attrs.field(default=30.0, validator=_seconds(0))
    multiplier: float = attrs.field(default=2.0, validator=_seconds(1))
    stable_after: float = attrs.field(default=30.0, validator=_seconds(0))
    refusal_grace: float = attrs.field(default=60.0, validator=_seconds(0))
    give_up_after: float | None = attrs.field(default=None, validator=attrs.validators.optional(_seconds(0)))

    def __attrs_post_init__(self) -> None:
        if self.max_delay < self.initial_delay:
            raise ValueError(f"max_delay ({self.max_delay}) must not be below initial_delay ({self.initial_delay})")


def _aware(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, datetime):
        raise TypeError(f"{attribute.name} takes a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise ValueError(f"{attribute.name} has no offset: give it one, for example tzinfo=UTC")


@attrs.frozen
class Recovery:
    """How mail that was missed is found through the REST API, which is asked after every reconnect and now and then.

    Only mail can be listed. The listing is by the mail's own time, which its sender chose, so it reaches back further
    than the gap. What it costs in requests is in `docs/reliability.md`.

    Args:
        overlap: Seconds before the gap from which on mail is listed at once.
        sweep_interval: Seconds between two sweeps, which look for mail that was missed though there was a connection.
        sweep_depth: Seconds that a sweep reaches back from the one before it. A mail that is dated further back from
            when it came is found by its push only.
        since: Where a first start begins, aware; `None`: now. A journal that has seen the stream before knows better.
        fetch_bodies: Whether to fetch the text and HTML of a pushed mail that came without either, since it was too
            large. The events behind it wait for that.
        sweep_rate: Requests a minute that sweeps make at most, on average; up to a quarter of them come at once. A
            sweep that takes longer than `sweep_interval` at this rate goes on at its place, and recent mail is looked
            at in between.

    Raises:
        TypeError: not a number, or not a datetime.
        ValueError: negative or not finite, `sweep_depth` below `overlap`, `sweep_rate` below 1, or `since` without an
            offset.
    """

    overlap: float = attrs.field(default=300.0, validator=_seconds(0))
    sweep_interval: float = attrs.field(default=300.0, validator=_seconds(1))
    sweep_depth: float = attrs.field(default=86_400.0, validator=_seconds(0))
    since: datetime | None = attrs.field(default=None, validator=attrs.validators.optional(_aware))
    fetch_bodies: bool = attrs.field(default=False, validator=lambda *args: _an(bool)(*args))
    sweep_rate: float = attrs.field(default=300.0, validator=_number(1))

    def __attrs_post_init__(self) -> None:
        if self.sweep_depth < self.overlap:
            raise ValueError(f"sweep_depth ({self.sweep_depth}) must not be below overlap ({self.overlap})")


def _at_least_one(instance: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} takes a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value!r}")


def _an(type_: type) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, type_):
            article = "an" if type_.__name__[0] in "AEIOUaeiou" else "a"
            raise TypeError(f"{attribute.name} takes {article} {type_.__name__}, not {type(value).__name__}")

    return check


def _for_clients(instance: object, attribute: "attrs.Attribute[Any]", context: ssl.SSLContext) -> None:
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ValueError(f"{attribute.name} is for servers; ssl.create_default_context() makes one for clients")


@attrs.frozen(kw_only=True)
class Settings:
    """The arguments of `open_agentmail_stream` that hold for every connection; described there."""

    environment: AgentMailEnvironment = attrs.field(validator=_an(AgentMailEnvironment))
    reconnect: ReconnectPolicy = attrs.field(validator=_an(ReconnectPolicy))
    ping_interval: float | None = attrs.field(validator=attrs.validators.optional(_seconds(0.001)))
    ping_timeout: float = attrs.field(validator=_seconds(0.001))
    open_timeout: float = attrs.field(validator=_seconds(0.001))
    enter_timeout: float = attrs.field(validator=_seconds(0.001))
    close_timeout: float = attrs.field(validator=_seconds(0))
    buffer_size: int = attrs.field(validator=_at_least_one)
    max_message_size: int = attrs.field(validator=_at_least_one)
    ssl_context: ssl.SSLContext | None = attrs.field(
        validator=attrs.validators.optional([_an(ssl.SSLContext), _for_clients])
    )
