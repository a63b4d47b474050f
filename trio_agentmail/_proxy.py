"""The proxy for each of AgentMail's hosts, from the caller's argument or from environment variables."""

import os
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from ._settings import AgentMailEnvironment, is_loopback

__all__ = ["DEFAULT_PORTS", "Proxies", "Proxy", "ProxyCredentialsError", "authority", "proxies_for", "proxy_from_url"]

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

VARIABLES = {"https": "$HTTPS_PROXY", "all": "$ALL_PROXY"}
"""The environment variables, in upper or lower case. The first one that is set is used."""

EXPECTED = (
    "must be a URL like http://user:password@host:port or https://host:port, "
    "with special characters in the user name and the password percent-encoded"
)


@attrs.frozen
class Proxy:
    """An HTTP proxy. Neither `str` nor `repr` shows the credentials.

    Attributes:
        scheme: `"http"`, or `"https"` if the connection to the proxy uses TLS.
        credentials: The user name and the password.
    """

    scheme: str
    host: str
    port: int
    credentials: tuple[str, str] | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the proxy {authority(self.host, self.port)}"

    @property
    def url(self) -> str:
        """The URL without the credentials."""
        return f"{self.scheme}://{authority(self.host, self.port)}"


class ProxyCredentialsError(ConnectionError):
    """The proxy requires a user name and a password, or rejected the ones that were sent."""


@attrs.frozen
class Proxies:
    """The proxy for each of AgentMail's hosts. `None` means a direct connection."""

    websockets: Proxy | None = None
    http: Proxy | None = None


def authority(host: str, port: int) -> str:
    """Return the host and port as they are written in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxies_for(environment: AgentMailEnvironment, given: Proxy | None) -> Proxies:
    """Return the proxies for the hosts of an environment. Loopback hosts are always reached directly.

    Args:
        given: The caller's proxy. If it is `None`, environment variables decide.

    Raises:
        ValueError: An environment variable is not the URL of an HTTP proxy.
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
    # Imported here because it takes 10 ms, unless httpx2 has imported it already.
    from urllib.request import getproxies_environment, proxy_bypass

    for scheme, variable in VARIABLES.items():
        if scheme in getproxies_environment():
            # If the environment names a proxy, proxy_bypass considers only $NO_PROXY.
            if proxy_bypass(host) or proxy_bypass(authority(host, parts.port or DEFAULT_PORTS[parts.scheme])):
                return None
            return proxy_from_url(_with_scheme(getproxies_environment()[scheme]), variable)
    return None


def _with_scheme(url: str) -> str:
    """Add the scheme `http` to a URL without a scheme, as other programs do."""
    return url if "://" in url else f"http://{url}"


def proxy_from_url(url: str, name: str) -> Proxy:
    """Parse the URL of a proxy.

    Args:
        name: The name of the argument or variable, for the error message.

    Raises:
        TypeError: The URL is not a string.
        ValueError: It is not the URL of an HTTP proxy. The message does not show it, since it may contain a password.
    """
    proxy = _parsed(url)
    del url  # error reporters may show the local variables of the frame that raises
    if isinstance(proxy, Proxy):
        return proxy
    error, complaint = proxy
    raise error(f"{name} {complaint}")


def _parsed(url: object) -> Proxy | tuple[type[Exception], str]:
    """Return the proxy, or the exception's class and message. This never raises, since its locals hold the password."""
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
        return ValueError, "is a SOCKS proxy, but only HTTP proxies are supported: http://… or https://…"
    if not _is_proxy_url(url, parts) or ":" in user:
        return ValueError, EXPECTED
    return Proxy(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=DEFAULT_PORTS[parts.scheme] if port is None else port,
        credentials=(user, password) if parts.username is not None else None,
    )


def _is_proxy_url(url: str, parts: SplitResult) -> bool:
    # A path may be the rest of a password with a "/" that was not percent-encoded.
    has_more = parts.path not in ("", "/") or "?" in url or "#" in url
    is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not has_more
    return is_url and url.isascii() and url.isprintable() and " " not in url
