"""The arguments of a stream: the subscription, the environment, the back-off, recovery, and other settings."""

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
        raise TypeError(f"{field} takes a list of strings, not a single string: write {field}=[{value!r}]")
    strings = tuple(value)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{field} takes a list of non-empty strings, but one item is {item!r}")
    if not strings:
        raise ValueError(f"{field} is empty and would match nothing; leave it out to match everything")
    return strings


# Each filter has its own converter, because mypy reads the argument's type from the converter's signature.
def _inbox_ids(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return _strings(value, "inbox_ids")


def _pod_ids(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return _strings(value, "pod_ids")


def _event_types(value: Iterable[EventType | str] | None) -> tuple[str, ...] | None:
    return _strings(value, "event_types")


def similar(name: str, names: Iterable[str]) -> str:
    """Return a suggestion such as `"; did you mean 'cut'?"` if one of the names is similar, else `""`."""
    import difflib  # imported here because it is rarely needed

    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@attrs.frozen
class Subscribe:
    """A subscription: the events to listen to. It is sent on every connection, and AgentMail confirms it.

    Each filter is optional. Without filters, the stream has all events that the API key may see. Without `event_types`,
    AgentMail leaves out spam, blocked and unauthenticated mail. To subscribe to these, the key needs the permissions
    `label_spam_read`, `label_blocked_read` and `label_unauthenticated_read` (source: AgentMail's public documentation
    of its WebSocket).

    Args:
        inbox_ids: The inboxes, for example `["agent@agentmail.to"]`.
        pod_ids: The pods.
        event_types: The event types, for example `["message.received", "message.bounced"]`. `EventType` lists the known
            ones. Others are accepted with a `UserWarning` that suggests a similar name, because AgentMail adds new
            types. Their events arrive as `UnknownEvent`.

    Raises:
        TypeError: A filter is a single string or contains something that is not a string.
        ValueError: A filter is empty.
    """

    inbox_ids: tuple[str, ...] | None = attrs.field(default=None, converter=_inbox_ids)
    pod_ids: tuple[str, ...] | None = attrs.field(default=None, converter=_pod_ids)
    event_types: tuple[str, ...] | None = attrs.field(default=None, converter=_event_types)

    def __attrs_post_init__(self) -> None:
        for event_type in self.event_types or ():
            if event_type not in EVENT_TYPES:
                warnings.warn(
                    f"unknown event type {event_type!r}{similar(event_type, EVENT_TYPES)}",
                    stacklevel=3,  # the caller of the __init__ that attrs generated
                )


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or a name for one."""
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
    """The base URLs of AgentMail's REST API and WebSocket, without the `/v0`.

    `AgentMailEnvironment.PROD` and `AgentMailEnvironment.EU_PROD` are AgentMail's own environments (source: its
    official Python SDK, `environment.py`).

    Args:
        http: The base URL of the REST API, `https://…`.
        websockets: The base URL of the WebSocket, `wss://…`.
        insecure: Whether to accept `http://` and `ws://` for hosts other than this machine. The API key then crosses
            the network unencrypted.

    Raises:
        TypeError: A URL is not a string.
        ValueError: A URL has another scheme, no host, a user name, a query, a fragment or the `/v0`. Or it is
            unencrypted and for another machine, and `insecure` is false.
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
        # The messages quote neither the URL nor the parser's error, because the URL may contain a key by mistake.
        if not isinstance(url, str):
            raise TypeError(f"{field} must be a URL as a string, not {type(url).__name__}")
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in (plain, plain + "s") and parts.hostname and parts.port != 0
            is_url = is_url and url.isascii() and url.isprintable() and " " not in url
            (parts.hostname or "").encode("idna")  # fails if a label is empty or longer than 63 characters
        except ValueError:
            is_url = False
        if not is_url:
            other, others = ("websockets", "ws") if plain == "http" else ("http", "http")
            swapped = url.startswith((f"{others}://", f"{others}s://"))
            hint = f"; {others}:// and {others}s:// are for {other}" if swapped else ""
            raise ValueError(f"{field} must be a URL like {plain}s://host or {plain}://localhost:8000{hint}")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"{field} must not contain a user name, a query or a fragment")
        if "v0" in parts.path.split("/"):
            raise ValueError(f"{field} must be the base URL, without /v0 and anything after it: {plain}s://host")
        if parts.scheme == plain and not self.insecure and not is_loopback(parts.hostname or ""):
            raise ValueError(
                f"{field} is an unencrypted {plain}:// URL of another machine and would expose the API key: use "
                f"{plain}s://, or pass insecure=True to accept this"
            )


AgentMailEnvironment.PROD = AgentMailEnvironment(http="https://api.agentmail.to", websockets="wss://ws.agentmail.to")
AgentMailEnvironment.EU_PROD = AgentMailEnvironment(http="https://api.agentmail.eu", websockets="wss://ws.agentmail.eu")


def _number(minimum: float, of: str = "") -> Callable[[object, "attrs.Attribute[float]", float], None]:
    def check(instance: object, attribute: "attrs.Attribute[float]", value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{attribute.name} takes a number{of}, not {value!r}")
        if not minimum <= value < math.inf:
            raise ValueError(f"{attribute.name} must be finite and at least {minimum}, not {value!r}")

    return check


def _seconds(minimum: float) -> Callable[[object, "attrs.Attribute[float]", float], None]:
    return _number(minimum, " of seconds")


@attrs.frozen
class ReconnectPolicy:
    """The back-off for reconnecting, and the conditions for giving up.

    The delay before an attempt is random, uniformly distributed between zero and an upper bound that grows with each
    attempt. This "full jitter" keeps clients that lost the same server from reconnecting all at once.

    Args:
        initial_delay: The first upper bound, in seconds.
        max_delay: The largest upper bound, in seconds.
        multiplier: The factor by which the bound grows after each attempt.
        stable_after: Seconds for which a subscription must have been in force before the back-off starts over. This
            protects a server that accepts connections and then drops them.
        refusal_grace: Seconds for which a stream that was subscribed before retries after refusals: 401, 403, 404, a
            redirect, any other status that is fatal on entering, or a certificate that cannot be verified. Servers and
            proxies may refuse connections in this way during a deployment. The time counts from the first refusal since
            a handshake was last accepted. The stream ends after three refusals at the earliest, even with 0.
        give_up_after: Seconds of outage after which the block ends with `ConnectionFailedError`. `None` means never.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is negative or not finite, `multiplier` is below 1, or `max_delay` is below `initial_delay`.
    """

    initial_delay: float = attrs.field(default=0.5, validator=_seconds(0))
    max_delay: float = attrs.field(default=30.0, validator=_seconds(0))
    multiplier: float = attrs.field(default=2.0, validator=_number(1))
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
        raise ValueError(f"{attribute.name} has no offset: add one, for example tzinfo=UTC")


@attrs.frozen
class Recovery:
    """Recovery of missed mail through the REST API: during outages, after every reconnect, and in periodic sweeps.

    AgentMail lists only mail; other events cannot be recovered. Listings are ordered by the mail's own time, which its
    sender chose, so recovery lists mail from before the gap as well. `docs/reliability.md` states how many requests
    this takes.

    Args:
        overlap: Seconds before a gap from which mail is listed immediately after the gap.
        sweep_interval: Seconds between two sweeps. A sweep finds mail that was missed despite a connection.
        sweep_depth: Seconds before the previous sweep from which a sweep lists mail. A sweep does not find mail with an
            earlier date.
        since: The time (aware) from which a first start recovers mail. `None` means now. The time in a journal that has
            been used before takes precedence.
        fetch_bodies: Whether to fetch the text and HTML of a mail that was so large that it was pushed without them.
            Later events wait for the response.
        sweep_rate: Maximum average number of requests per minute that sweeps make, and polls during outages. A quarter
            of them may be made in one burst. A sweep that takes longer than `sweep_interval` at this rate goes on, and
            recent mail is checked in between.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A number is negative, not finite or below its minimum (1 for `sweep_interval` and `sweep_rate`),
            `sweep_depth` is below `overlap`, or `since` has no offset.
    """

    overlap: float = attrs.field(default=300.0, validator=_seconds(0))
    sweep_interval: float = attrs.field(default=300.0, validator=_seconds(1))
    sweep_depth: float = attrs.field(default=86_400.0, validator=_seconds(0))
    since: datetime | None = attrs.field(default=None, validator=attrs.validators.optional(_aware))
    fetch_bodies: bool = attrs.field(default=False, validator=lambda *args: _instance_of(bool)(*args))
    sweep_rate: float = attrs.field(default=300.0, validator=_number(1))

    def __attrs_post_init__(self) -> None:
        if self.sweep_depth < self.overlap:
            raise ValueError(f"sweep_depth ({self.sweep_depth}) must not be below overlap ({self.overlap})")


def _at_least_one(instance: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} takes a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value!r}")


def _instance_of(type_: type) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, type_):
            article = "an" if type_.__name__[0] in "AEIOUaeiou" else "a"
            raise TypeError(f"{attribute.name} takes {article} {type_.__name__}, not {type(value).__name__}")

    return check


def _for_clients(instance: object, attribute: "attrs.Attribute[Any]", context: ssl.SSLContext) -> None:
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ValueError(f"{attribute.name} is a context for servers; use ssl.create_default_context() for a client")


@attrs.frozen(kw_only=True)
class Settings:
    """The arguments of `open_agentmail_stream` that apply to every connection. See there."""

    environment: AgentMailEnvironment = attrs.field(validator=_instance_of(AgentMailEnvironment))
    reconnect: ReconnectPolicy = attrs.field(validator=_instance_of(ReconnectPolicy))
    ping_interval: float | None = attrs.field(validator=attrs.validators.optional(_seconds(0.001)))
    ping_timeout: float = attrs.field(validator=_seconds(0.001))
    open_timeout: float = attrs.field(validator=_seconds(0.001))
    enter_timeout: float = attrs.field(validator=_seconds(0.001))
    close_timeout: float = attrs.field(validator=_seconds(0))
    buffer_size: int = attrs.field(validator=_at_least_one)
    max_message_size: int = attrs.field(validator=_at_least_one)
    ssl_context: ssl.SSLContext | None = attrs.field(
        validator=attrs.validators.optional([_instance_of(ssl.SSLContext), _for_clients])
    )
