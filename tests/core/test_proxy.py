"""The proxy is chosen by the `proxy` argument or by environment variables."""

import traceback
from typing import Any

import pytest

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import AgentMailEnvironment
from trio_agentmail._proxy import Proxies, Proxy, proxies_for, proxy_from_url
from trio_agentmail.testing import FakeAgentMail

SECRET = "S3CRET"
GIVEN = Proxy("http", "proxy.example", 3128)
PROD = AgentMailEnvironment.PROD
BOTH, DIRECT = Proxies(GIVEN, GIVEN), Proxies()


# The URL


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "credentials"),
    [
        ("http://proxy.example:3128", "http", "proxy.example", 3128, None),
        ("http://proxy.example:3128/", "http", "proxy.example", 3128, None),
        ("HTTP://Proxy.Example:3128", "http", "proxy.example", 3128, None),
        ("http://proxy.example", "http", "proxy.example", 80, None),
        ("https://proxy.example", "https", "proxy.example", 443, None),
        ("https://10.0.0.1:8443", "https", "10.0.0.1", 8443, None),
        ("http://[2001:db8::1]:3128", "http", "2001:db8::1", 3128, None),
        ("http://user:password@proxy.example:3128", "http", "proxy.example", 3128, ("user", "password")),
        ("http://user:p%40ss%2Fw%3Ard%25@proxy.example:1", "http", "proxy.example", 1, ("user", "p@ss/w:rd%")),
        ("http://us%20er:p%C3%A4ss@proxy.example:1", "http", "proxy.example", 1, ("us er", "päss")),
        ("http://user:p@ss@proxy.example:1", "http", "proxy.example", 1, ("user", "p@ss")),
        ("http://token@proxy.example:1", "http", "proxy.example", 1, ("token", "")),
        ("http://user:@proxy.example:1", "http", "proxy.example", 1, ("user", "")),
    ],
)
def test_a_url_is_parsed_into_scheme_host_port_and_credentials(
    url: str, scheme: str, host: str, port: int, credentials: tuple[str, str] | None
) -> None:
    assert proxy_from_url(url, "proxy") == Proxy(scheme, host, port, credentials)


BAD_URLS = [
    "",
    "proxy.example",
    "proxy.example:3128",
    f"user:{SECRET}@proxy.example:3128",
    f"ftp://user:{SECRET}@proxy.example:3128",
    f"ws://user:{SECRET}@proxy.example:3128",
    "http://",
    "http://:3128",
    f"http://user:{SECRET}@",
    f"http://user:{SECRET}@proxy.example:0",
    f"http://user:{SECRET}@proxy.example:99999",
    f"http://user:{SECRET}@proxy.example:port",
    f"http://user:{SECRET}@proxy.example:3128/path",
    f"http://user:{SECRET}@proxy.example:3128?query",
    f"http://user:{SECRET}@proxy.example:3128#fragment",
    f"http://user:1/{SECRET}@proxy.example:3128",
    f"http://user:1#{SECRET}@proxy.example:3128",
    f"http://user:{SECRET}\u00e4@proxy.example:3128",
    f"http://user:{SECRET} @proxy.example:3128",
    f"http://user:{SECRET}\n@proxy.example:3128",
    f"http://user:{SECRET}%FF@proxy.example:3128",
    f"http://us%3Aer:{SECRET}@proxy.example:3128",
    f"http://user:{SECRET}@[proxy.example:3128",
    f"http://user:{SECRET}@{'x' * 64}.example:3128",
    f"socks5://user:{SECRET}@proxy.example:1080",
    f"socks5h://user:{SECRET}@proxy.example:1080",
]


def told(exc: BaseException) -> str:
    """Return everything that can be shown of an exception, with the locals of all frames but the test's own."""
    shown = traceback.TracebackException(type(exc), exc, exc.__traceback__, capture_locals=True)
    return "".join([str(exc), repr(exc), *(repr(frame.locals) for frame in list(shown.stack)[1:])])


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_bad_url_raises_on_entering_and_its_password_is_not_shown(url: str) -> None:
    for open_ in (open_agentmail_stream, open_agentmail_session):
        with pytest.raises(ValueError, match=r"^proxy .*http") as caught:
            async with open_(backend=FakeAgentMail(), proxy=url):
                pytest.fail("entered")
        assert ("SOCKS" in str(caught.value)) == url.startswith("socks")
        assert SECRET not in told(caught.value)


@pytest.mark.parametrize("url", [b"http://proxy.example:3128", 3128, True, ("http", "proxy.example")])
async def test_a_proxy_that_is_not_a_string_raises_on_entering(url: Any) -> None:
    with pytest.raises(TypeError, match=f"^proxy .* not {type(url).__name__}"):
        async with open_agentmail_stream(backend=FakeAgentMail(), proxy=url):
            pytest.fail("entered")


async def test_other_bad_arguments_do_not_show_its_password() -> None:
    wrong: Any = "soon"
    with pytest.raises(TypeError, match="open_timeout") as caught:
        async with open_agentmail_stream(
            backend=FakeAgentMail(), proxy=f"http://user:{SECRET}@proxy.example:3128", open_timeout=wrong
        ):
            pytest.fail("entered")
    assert SECRET not in told(caught.value)


async def test_a_fake_is_reached_without_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    for proxy in (None, "http://127.0.0.1:1"):
        async with open_agentmail_stream(backend=FakeAgentMail(), proxy=proxy):
            pass
        with FakeAgentMail().installed():
            async with open_agentmail_stream(proxy=proxy):
                pass


def test_a_proxy_is_named_by_host_and_port_and_shows_no_password() -> None:
    proxy = proxy_from_url(f"http://user:{SECRET}@[2001:db8::1]:3128", "proxy")
    assert (str(proxy), proxy.url) == ("the proxy [2001:db8::1]:3128", "http://[2001:db8::1]:3128")
    assert SECRET not in repr(proxy)
    assert SECRET not in repr(Proxies(proxy, proxy))


# The environment


def test_without_variables_there_is_no_proxy() -> None:
    assert proxies_for(PROD, None) == DIRECT


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, BOTH),
        ({"https_proxy": "http://proxy.example:3128"}, BOTH),
        ({"HTTPS_PROXY": "proxy.example:3128"}, BOTH),
        ({"https_proxy": "http://proxy.example:3128", "HTTPS_PROXY": "http://other.example"}, BOTH),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "ALL_PROXY": "socks5://other.example"}, BOTH),
        ({"ALL_PROXY": "http://proxy.example:3128"}, BOTH),
        ({"all_proxy": "http://proxy.example:3128"}, BOTH),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, DIRECT),
        ({"HTTPS_PROXY": ""}, DIRECT),
        ({"https_proxy": "", "HTTPS_PROXY": "http://proxy.example:3128"}, DIRECT),
    ],
)
def test_the_variables_select_the_proxy(
    variables: dict[str, str], expected: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxies_for(PROD, None) == expected


def test_the_variables_apply_to_unencrypted_urls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    plain = AgentMailEnvironment(http="http://api.example", websockets="ws://ws.example", insecure=True)
    assert proxies_for(plain, None) == BOTH


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize(
    ("value", "websockets", "http"),
    [
        ("*", False, False),
        ("agentmail.to", False, False),
        (".agentmail.to", False, False),
        ("AGENTMAIL.TO", False, False),
        ("example.com, ws.agentmail.to", False, True),
        ("api.agentmail.to", True, False),
        ("api.agentmail.to:443", True, False),
        ("api.agentmail.to:8443", True, True),
        ("mail.to", True, True),
        ("example.com", True, True),
        ("", True, True),
    ],
)
def test_no_proxy_names_the_hosts_that_are_reached_directly(
    variable: str, value: str, websockets: bool, http: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv(variable, value)
    expected = Proxies(GIVEN if websockets else None, GIVEN if http else None)
    assert proxies_for(PROD, None) == expected


@pytest.mark.parametrize("value", ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:8443"])
def test_no_proxy_may_name_an_ipv6_address(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", value)
    environment = AgentMailEnvironment(http="https://api.example", websockets="wss://[2001:db8::1]:8443")
    assert proxies_for(environment, None) == Proxies(None, GIVEN)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "agent.localhost"])
@pytest.mark.parametrize("given", [None, GIVEN])
def test_loopback_hosts_are_always_reached_directly(
    host: str, given: Proxy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    environment = AgentMailEnvironment(http=f"http://{host}:8000", websockets=f"ws://{host}:8000")
    assert proxies_for(environment, given) == DIRECT
    environment = AgentMailEnvironment(http=f"http://{host}:8000", websockets="wss://ws.agentmail.to")
    assert proxies_for(environment, given) == Proxies(GIVEN, None)


def test_the_argument_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://other.example:1080")
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxies_for(PROD, GIVEN) == BOTH


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("url", [f"socks5://user:{SECRET}@proxy.example", f"http://user:{SECRET}@proxy.example:port"])
async def test_an_unusable_variable_raises_on_entering_with_its_name(
    variable: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(ValueError, match=rf"^\${variable} ") as caught:
        async with open_agentmail_stream(api_key="am_key"):
            pytest.fail("entered")
    assert SECRET not in told(caught.value)
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxies_for(PROD, None) == DIRECT
