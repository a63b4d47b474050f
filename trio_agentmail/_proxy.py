"""The proxy between us and AgentMail, where a network has one: what the caller or the environment says of it."""

import os
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from ._settings import AgentMailEnvironment, is_loopback

__all__ = ["DEFAULT_PORTS", "Proxies", "Proxy", "ProxyCredentialsError", "authority", "proxies_for", "proxy_from_url"]

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

VARIABLES = {"https": "$HTTPS_PROXY", "all": "$ALL_PROXY"}
"""Variables of the environment, in upper or lower case: the first that there is counts."""

EXPECTED = (
    "must be a URL like http://user:password@host:port or https://host:port, "
    "with all special characters of the user name and the password percent-encoded"
)


@attrs.frozen
class Proxy:
    """An HTTP proxy. Its text names it, without the credentials.

    Attributes:
        scheme: How it is spoken to: `"https"` is TLS.
        credentials: User name and password.
    """

    scheme: str
    host: str
    port: int
    credentials: tuple[str, str] | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the proxy {authority(self.host, self.port)}"

    @property
    def url(self) -> str:
        """Without the credentials."""
        return f"{self.scheme}://{authority(self.host, self.port)}"


class ProxyCredentialsError(ConnectionError):
    """The proxy wants a user name and a password, or others than these."""


@attrs.frozen
class Proxies:
    """Through which proxy each of AgentMail's hosts is reached; `None`: directly."""

    websockets: Proxy | None = None
    http: Proxy | None = None


def authority(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxies_for(environment: AgentMailEnvironment, given: Proxy | None) -> Proxies:
    """Through which proxies to talk to AgentMail.

    Args:
        given: What the caller wants; `None`: what the environment says.

    Raises:
        ValueError: a variable of the environment is no URL of a proxy.
    """
    return Proxies(websockets=_proxy_for(environment.websockets, given), http=_proxy_for(environment.http, given))


def _proxy_for(url: str, given: Proxy | None) -> Proxy | None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host):
        return None
    if given is not None:
        return given
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    # Imported here, since it takes 10 ms, unless httpx2 has imported it.
    from urllib.request import getproxies_environment, proxy_bypass

    for scheme, variable in VARIABLES.items():
        if scheme in getproxies_environment():
            # proxy_bypass looks at the environment alone, since that is where there is a proxy.
            if proxy_bypass(host) or proxy_bypass(authority(host, parts.port or DEFAULT_PORTS[parts.scheme])):
                return None
            return proxy_from_url(_with_scheme(getproxies_environment()[scheme]), variable)
    return None


def _with_scheme(url: str) -> str:
    """A variable may do without, as it may for other programs."""
    return url if "://" in url else f"http://{url}"


def proxy_from_url(url: str, name: str) -> Proxy:
    """Read the URL of a proxy.

    Args:
        name: What the error calls it.

    Raises:
        TypeError: it is no string.
        ValueError: it is no URL of an HTTP proxy. The message does not repeat it, since a password may be in it.
    """
    proxy = _parsed(url)
    del url  # the locals of what raises may be shown
    if isinstance(proxy, Proxy):
        return proxy
    error, complaint = proxy
    raise error(f"{name} {complaint}")


def _parsed(url: object) -> Proxy | tuple[type[Exception], str]:
    """The proxy, or what is wrong. Nothing is raised here, where the locals hold the password."""
    if not isinstance(url, str):
        return TypeError, f"must be a URL as a string, not {type(url).__name__}"
    try:
        parts = urlsplit(url)
        user = unquote(parts.username or "", errors="strict")
        password = unquote(parts.password or "", errors="strict")
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        return ValueError, EXPECTED
    if parts.scheme.startswith("socks"):
        return ValueError, "is a SOCKS proxy, and only HTTP proxies can be used: http://… or https://…"
    if not _is_proxy_url(url, parts) or ":" in user:
        return ValueError, EXPECTED
    return Proxy(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=DEFAULT_PORTS[parts.scheme] if port is None else port,
        credentials=(user, password) if parts.username is not None else None,
    )


def _is_proxy_url(url: str, parts: SplitResult) -> bool:
    # A path: a "/" in a password that was not percent-encoded makes one.
    has_more = parts.path not in ("", "/") or "?" in url or "#" in url
    is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not has_more
    return is_url and url.isascii() and url.isprintable() and " " not in url
