"""Arguments are checked where they are given, and the message says what to write instead."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, get_args

import attrs
import pytest

from trio_agentmail import AgentMailEnvironment, EventType, ReconnectPolicy, Recovery, Subscribe

FILTERS = ["inbox_ids", "pod_ids", "event_types"]
HTTPS = "https://api.example"
WSS = "wss://ws.example"


# Subscribe


def test_nothing_given_subscribes_to_everything() -> None:
    assert attrs.asdict(Subscribe()) == {"inbox_ids": None, "pod_ids": None, "event_types": None}


@pytest.mark.parametrize("field", FILTERS)
def test_a_single_string_for_a_filter_is_refused_and_the_message_shows_the_list(field: str) -> None:
    arguments: dict[str, Any] = {field: "agent"}
    with pytest.raises(TypeError) as caught:
        Subscribe(**arguments)
    assert f"{field}=['agent']" in str(caught.value)


@pytest.mark.parametrize("field", FILTERS)
def test_bytes_for_a_filter_are_refused(field: str) -> None:
    arguments: dict[str, Any] = {field: b"agent"}
    with pytest.raises(TypeError, match=field):
        Subscribe(**arguments)


@pytest.mark.parametrize("item", [7, None, "", b"agent"])
@pytest.mark.parametrize("field", FILTERS)
def test_an_item_that_is_not_a_string_is_refused_by_name(field: str, item: object) -> None:
    arguments: dict[str, Any] = {field: ["agent", item]}
    with pytest.raises(TypeError) as caught:
        Subscribe(**arguments)
    assert field in str(caught.value)
    assert repr(item) in str(caught.value)


@pytest.mark.parametrize("field", FILTERS)
def test_an_empty_list_is_refused_because_it_would_match_nothing(field: str) -> None:
    arguments: dict[str, Any] = {field: []}
    with pytest.raises(ValueError, match=rf"{field}.*leave it out"):
        Subscribe(**arguments)


def test_any_iterable_of_strings_makes_the_same_hashable_value() -> None:
    first = Subscribe(inbox_ids=["a", "b"])
    second = Subscribe(inbox_ids=(inbox for inbox in ("a", "b")))
    assert first == second
    assert hash(first) == hash(second)
    assert first.inbox_ids == ("a", "b")


def test_a_subscription_cannot_be_changed_afterwards() -> None:
    inboxes = ["a"]
    subscribe = Subscribe(inbox_ids=inboxes)
    inboxes.append("b")
    assert subscribe.inbox_ids == ("a",)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        subscribe.inbox_ids = ("b",)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("event_type", "suggestion"),
    [
        ("mesage.received", "; did you mean 'message.received'?"),
        ("message_bounced", "; did you mean 'message.bounced'?"),
        ("Message.Sent", "; did you mean 'message.sent'?"),
        ("message.received.spa", "; did you mean 'message.received.spam'?"),
        ("calendar.created", "; did you mean 'calendar.event.created'?"),
        ("thread.closed\x1b", ""),
        ("?", ""),
    ],
)
def test_an_unknown_event_type_warns_the_caller_with_a_suggestion(event_type: str, suggestion: str) -> None:
    with pytest.warns(UserWarning, match="^unknown event type ") as warned:
        subscribe = Subscribe(event_types=["message.received", event_type])
    assert subscribe.event_types == ("message.received", event_type)
    [warning] = warned
    assert str(warning.message) == f"unknown event type {event_type!r}{suggestion}"
    assert str(warning.message).isprintable()
    assert warning.filename == __file__


def test_each_unknown_event_type_has_its_own_warning() -> None:
    with pytest.warns(UserWarning, match="^unknown event type ") as warned:
        Subscribe(event_types=["a", "message.sent", "b"])
    assert len(warned) == 2


def test_known_event_types_do_not_warn() -> None:
    assert Subscribe(event_types=get_args(EventType)).event_types == get_args(EventType)


# AgentMailEnvironment


def test_agentmails_own_environments_are_encrypted() -> None:
    prod, eu_prod = AgentMailEnvironment.PROD, AgentMailEnvironment.EU_PROD
    assert (prod.http, prod.websockets) == ("https://api.agentmail.to", "wss://ws.agentmail.to")
    assert (eu_prod.http, eu_prod.websockets) == ("https://api.agentmail.eu", "wss://ws.agentmail.eu")
    assert (prod.insecure, eu_prod.insecure) == (False, False)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "app.localhost", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8000"],
)
def test_plain_urls_are_accepted_for_this_machine(host: str) -> None:
    environment = AgentMailEnvironment(http=f"http://{host}", websockets=f"ws://{host}")
    assert environment.websockets == f"ws://{host}"


@pytest.mark.parametrize(
    "host",
    ["ws.example", "localhost.example", "notlocalhost", "10.0.0.1", "0.0.0.0", "[2001:db8::1]", "127.0.0.1.example"],
)
@pytest.mark.parametrize("field", ["http", "websockets"])
def test_a_plain_url_of_another_machine_is_refused_without_insecure(field: str, host: str) -> None:
    plain = {"http": "http", "websockets": "ws"}[field]
    urls: dict[str, Any] = {"http": HTTPS, "websockets": WSS, field: f"{plain}://{host}"}
    with pytest.raises(ValueError, match=rf"^{field} .*{plain}s://.*insecure=True"):
        AgentMailEnvironment(**urls)
    assert AgentMailEnvironment(**urls, insecure=True).insecure


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://ws.example", "must be a URL like"),
        ("https://ws.example", "must be a URL like"),  # not a WebSocket's
        ("ws.example", "must be a URL like"),
        ("", "must be a URL like"),
        ("wss://", "must be a URL like"),
        ("wss:///v0", "must be a URL like"),
        ("wss://am_secret@ws.example", "must not contain a user name"),
        ("wss://user:am_secret@ws.example", "must not contain a user name"),
        ("wss://ws.example?api_key=am_secret", "must not contain a user name, a query"),
        ("wss://ws.example#am_secret", "must not contain a user name, a query or a fragment"),
        ("am_secret://ws.example", "must be a URL like"),
        ("wss://ws. example", "must be a URL like"),
        ("wss://ws.example/a path", "must be a URL like"),
        ("wss://ws.example/\u00e9", "must be a URL like"),
        ("wss://ws..example", "must be a URL like"),
        (f"wss://{'x' * 64}.example", "must be a URL like"),
    ],
)
def test_an_invalid_url_is_refused_without_being_shown(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"websockets.*{why}") as caught:
        AgentMailEnvironment(http=HTTPS, websockets=url)
    assert "am_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "url"),
    [
        ("http", f"{HTTPS}/v0"),
        ("http", f"{HTTPS}/v0/"),
        ("http", f"{HTTPS}/proxy/v0"),
        ("http", f"{HTTPS}/v0/inboxes"),
        ("http", "http://localhost:8490/v0"),
        ("websockets", f"{WSS}/v0"),
        ("websockets", f"{WSS}:443/v0//"),
    ],
)
def test_a_base_url_with_the_version_is_refused(field: str, url: str) -> None:
    urls: dict[str, Any] = {"http": HTTPS, "websockets": WSS, field: url}
    with pytest.raises(ValueError, match=rf"^{field} must be the base URL, without /v0"):
        AgentMailEnvironment(**urls)


def test_a_base_url_may_have_a_path_of_its_own() -> None:
    environment = AgentMailEnvironment(http=f"{HTTPS}/v0-of-ours/", websockets=f"{WSS}/agentmail/")
    assert (environment.http, environment.websockets) == (f"{HTTPS}/v0-of-ours", f"{WSS}/agentmail")


@pytest.mark.parametrize(
    ("http", "websockets", "message"),
    [
        (WSS, WSS, r"^http must be a URL like https://host .*; ws:// and wss:// are for websockets$"),
        ("ws://localhost", WSS, r"^http must .*; ws:// and wss:// are for websockets$"),
        (HTTPS, HTTPS, r"^websockets must be a URL like wss://host .*; http:// and https:// are for http$"),
        (HTTPS, "http://localhost", r"^websockets must .*; http:// and https:// are for http$"),
        (HTTPS, "ftp://localhost", r"^websockets must be a URL like wss://host or ws://localhost:8000$"),
    ],
)
def test_the_message_for_a_url_in_the_wrong_argument_names_the_right_one(
    http: str, websockets: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AgentMailEnvironment(http=http, websockets=websockets)


@pytest.mark.parametrize("port", ["99999", "-1", "am_secret"])
def test_an_invalid_port_is_refused_when_the_environment_is_made(port: str) -> None:
    with pytest.raises(ValueError) as caught:
        AgentMailEnvironment(http=HTTPS, websockets=f"wss://ws.example:{port}")
    assert "am_secret" not in str(caught.value)


@pytest.mark.parametrize("field", ["http", "websockets"])
@pytest.mark.parametrize("url", [None, b"wss://ws.example", 7])
def test_a_url_that_is_not_a_string_is_a_type_error(field: str, url: object) -> None:
    urls: dict[str, Any] = {"http": HTTPS, "websockets": WSS, field: url}
    with pytest.raises(TypeError, match=field):
        AgentMailEnvironment(**urls)


def test_a_slash_at_the_end_makes_no_difference() -> None:
    with_slash = AgentMailEnvironment(http=HTTPS + "/", websockets=WSS + "/")
    assert with_slash == AgentMailEnvironment(http=HTTPS, websockets=WSS)


# ReconnectPolicy

DELAYS = [field.name for field in attrs.fields(ReconnectPolicy)]


def test_the_defaults_are_those_that_the_documentation_names() -> None:
    assert attrs.astuple(ReconnectPolicy()) == (0.5, 30.0, 2.0, 30.0, 60.0, None)


@pytest.mark.parametrize("value", [-1, -0.001, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", DELAYS)
def test_a_delay_that_is_negative_or_not_finite_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be finite and at least "):
        ReconnectPolicy(**{field: value})


@pytest.mark.parametrize("value", ["1", True, [1], 1j])
@pytest.mark.parametrize("field", DELAYS)
def test_a_delay_that_is_not_a_number_is_a_type_error(field: str, value: object) -> None:
    arguments: dict[str, Any] = {field: value}
    unit = "" if field == "multiplier" else " of seconds"
    with pytest.raises(TypeError, match=f"^{field} takes a number{unit}, not "):
        ReconnectPolicy(**arguments)


def test_only_give_up_after_may_be_none() -> None:
    assert ReconnectPolicy(give_up_after=None).give_up_after is None
    for field in set(DELAYS) - {"give_up_after"}:
        arguments: dict[str, Any] = {field: None}
        with pytest.raises(TypeError, match=field):
            ReconnectPolicy(**arguments)


def test_the_upper_bound_may_not_shrink_from_attempt_to_attempt() -> None:
    with pytest.raises(ValueError, match=r"multiplier must be finite and at least 1, not 0\.5"):
        ReconnectPolicy(multiplier=0.5)
    assert ReconnectPolicy(multiplier=1).multiplier == 1


def test_max_delay_may_not_be_below_initial_delay() -> None:
    with pytest.raises(ValueError, match=r"max_delay \(0.25\).*initial_delay \(0.5\)"):
        ReconnectPolicy(max_delay=0.25)
    assert ReconnectPolicy(initial_delay=3, max_delay=3).max_delay == 3


def test_a_policy_cannot_be_changed_afterwards() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ReconnectPolicy().max_delay = 1.0  # type: ignore[misc]


# Recovery

SPANS = ["overlap", "sweep_interval", "sweep_depth"]


def test_the_defaults_of_recovery_are_those_that_the_documentation_names() -> None:
    assert attrs.astuple(Recovery()) == (300.0, 300.0, 86_400.0, None, False, 300.0)


@pytest.mark.parametrize("value", [-1, -0.001, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", SPANS)
def test_a_span_that_is_negative_or_not_finite_is_refused_by_name(field: str, value: float) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"^{field} must be finite and at least "):
        Recovery(**arguments)


@pytest.mark.parametrize("value", ["1", True, None, [1], 1j, timedelta(minutes=5)])
@pytest.mark.parametrize("field", SPANS)
def test_a_span_that_is_not_a_number_is_a_type_error(field: str, value: object) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(TypeError, match=f"^{field} takes a number of seconds"):
        Recovery(**arguments)


def test_sweeps_are_at_least_a_second_apart() -> None:
    with pytest.raises(ValueError, match=r"^sweep_interval must be finite and at least 1, not 0.999"):
        Recovery(sweep_interval=0.999)
    assert Recovery(sweep_interval=1).sweep_interval == 1


@pytest.mark.parametrize("value", [0, 0.999, -1, math.inf, math.nan])
def test_sweeps_make_at_least_one_request_a_minute(value: float) -> None:
    with pytest.raises(ValueError, match=r"^sweep_rate must be finite and at least 1, not"):
        Recovery(sweep_rate=value)
    assert Recovery(sweep_rate=1).sweep_rate == 1


@pytest.mark.parametrize("value", ["1", True, None, timedelta(minutes=1)])
def test_a_sweep_rate_that_is_not_a_number_is_a_type_error(value: object) -> None:
    arguments: dict[str, Any] = {"sweep_rate": value}
    with pytest.raises(TypeError, match=r"^sweep_rate takes a number, not"):
        Recovery(**arguments)


def test_sweep_depth_may_not_be_below_overlap() -> None:
    with pytest.raises(ValueError, match=r"sweep_depth \(299\).*overlap \(300.0\)"):
        Recovery(sweep_depth=299)
    with pytest.raises(ValueError, match=r"sweep_depth \(86400.0\).*overlap \(90000\)"):
        Recovery(overlap=90_000)
    assert Recovery(overlap=0, sweep_depth=0).sweep_depth == 0
    assert Recovery(overlap=7, sweep_depth=7).overlap == 7


@pytest.mark.parametrize("offset", [UTC, timezone(timedelta(hours=-8))])
def test_since_is_any_time_that_has_an_offset(offset: timezone) -> None:
    since = datetime(2026, 1, 2, tzinfo=offset)
    assert Recovery(since=since).since == since


def test_a_since_without_an_offset_is_refused_and_the_message_shows_one() -> None:
    with pytest.raises(ValueError, match=r"^since has no offset.*tzinfo=UTC"):
        Recovery(since=datetime(2026, 1, 2))


@pytest.mark.parametrize("value", ["2026-01-02T00:00:00Z", 1_767_312_000, True, date(2026, 1, 2), timedelta(days=1)])
def test_a_since_that_is_not_a_datetime_is_a_type_error(value: object) -> None:
    arguments: dict[str, Any] = {"since": value}
    with pytest.raises(TypeError, match=f"^since takes a datetime, not {type(value).__name__}"):
        Recovery(**arguments)


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_fetch_bodies_takes_only_a_bool(value: object) -> None:
    arguments: dict[str, Any] = {"fetch_bodies": value}
    with pytest.raises(TypeError, match="fetch_bodies"):
        Recovery(**arguments)
    assert Recovery(fetch_bodies=True).fetch_bodies is True


def test_recovery_cannot_be_changed_afterwards() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Recovery().overlap = 1.0  # type: ignore[misc]
