"""The protection of the ports from web pages on other hosts.

Any web page can make the browser send requests to this machine. The browser does not let the page read the response,
but by then the request has been carried out. The page can use a WebSocket fully, and if its own name resolves to
127.0.0.1 (DNS rebinding), it can read everything. However, a browser also sends the origin of the page (`Origin`,
`Sec-Fetch-Site`) and the host name in the URL (`Host`). This module checks these headers.
"""

import ipaddress
import re
from collections.abc import Callable, Collection

import attrs
import h11
import orjson
import trio

from trio_agentmail._printable import printable
from trio_agentmail.testing._agentmail.refusals import Refusal, not_http
from trio_agentmail.testing._checks import check_texts

__all__ = ["AccessCheck", "CheckedStream", "check_hosts"]

HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^][:@/?#\\%\s]+)(:[0-9]{0,5})?")
ORIGIN = re.compile(rf"https?://{HOST.pattern}", re.IGNORECASE)

ALLOWED_FETCH_SITES = ("none", "same-origin", "same-site")
"""The values of `Sec-Fetch-Site` for a request by the user or by a page of the same site."""


def check_hosts(names: Collection[str]) -> None:
    """Check host names, as given to `allow_hosts`.

    Raises:
        TypeError: The names are not a collection of strings.
        ValueError: A name is neither a host name nor an IP address, for example because it has a port.
    """
    check_texts("allow_hosts", names)
    for name in names:
        match = HOST.fullmatch(name)
        if _address(name) is None and (match is None or match[2] is not None):
            raise ValueError(f"allow_hosts takes host names and IP addresses without a port, not {name!r}")


@attrs.frozen
class AccessCheck:
    """The check of the headers of requests.

    Attributes:
        address: The local address that the client connected to, which is accepted as `Host`.
        names: Further names and addresses that are accepted as `Host`.
    """

    address: str
    names: Collection[str] = ()

    def refusal(self, head: h11.Request) -> Refusal | None:
        """Return why a request is refused, or `None` if it is not."""
        hosts = _values(head, b"host")
        target = head.target.decode("ascii", "replace")
        if not target.startswith("/") and "://" in target:
            # RFC 9112, 3.2.2: the absolute form, whose host takes precedence over the header.
            hosts.append(target.partition("://")[2].partition("/")[0])
        if not hosts or not all(map(self._is_ours, hosts)):
            asked = " and ".join(map(repr, hosts)) or "''"
            return _refusal(f"the request is for the host {asked}; to allow it, use --allow-host or allow_hosts")
        if origins := _values(head, b"origin"):
            if len(origins) > 1 or not _is_loopback_origin(origins[0]):
                return _refusal(f"the request is from a page of {' and '.join(map(repr, origins))}")
        elif not all(site in ALLOWED_FETCH_SITES for site in _values(head, b"sec-fetch-site")):
            return _refusal("the request is from a page of another site")
        return None

    def _is_ours(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = _plain(match["name"])
        return _is_loopback(name) or name in {_plain(own) for own in (self.address, *self.names)}


def _refusal(why: str) -> Refusal:
    return Refusal(
        403, "forbidden", f"this fake AgentMail only serves programs on its own machine: {printable(why, 500)}"
    )


def _values(head: h11.Request, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in head.headers if key == name]


def _plain(name: str) -> str:
    """Return the canonical spelling of a name or address."""
    address = _address(name)
    return name.lower().removesuffix(".") if address is None else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" if address is None else address.is_loopback


def _is_loopback_origin(origin: str) -> bool:
    match = ORIGIN.fullmatch(origin)
    return match is not None and _is_loopback(_plain(match["name"]))


class CheckedStream(trio.abc.Stream):
    """The stream below a WebSocket. It checks the first request before it passes any data on.

    If the request is refused or is not HTTP, this stream sends the response, and then reports its end to the reader.

    Args:
        refuse: Returns why a request is refused, or `None` if it is not.
    """

    def __init__(self, stream: trio.abc.Stream, refuse: Callable[[h11.Request], Refusal | None]) -> None:
        self._stream = stream
        self._refuse = refuse
        self._is_open = False
        self._is_refused = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._is_open:
            return await self._stream.receive_some(max_bytes)
        return b"" if self._is_refused else await self._receive_request()

    async def _receive_request(self) -> bytes:
        http = h11.Connection(h11.SERVER)
        received = b""
        is_head = False
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                data = bytes(await self._stream.receive_some())
                http.receive_data(data)
                received += data
        except h11.RemoteProtocolError as exc:
            status, refusal = exc.error_status_hint, not_http(exc)
        else:
            if not isinstance(event, h11.Request):  # the client has gone
                return b""
            refused = self._refuse(event)
            if refused is None:
                self._is_open = True
                return received
            status, refusal, is_head = refused.status, refused, event.method == b"HEAD"
        self._is_refused = True
        body = orjson.dumps(refusal.answer)
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        answer = http.send(h11.Response(status_code=status, headers=headers)) or b""
        await self._stream.send_all(answer if is_head else answer + body)
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  required of a Stream, and not called
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
