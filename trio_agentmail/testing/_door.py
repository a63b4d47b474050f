"""Who may talk to the fake on its ports: programs of this machine, and no page in a browser that is from elsewhere.

A browser sends requests to this machine for any page that asks it to. It does not let the page read the answer, but the
request has been obeyed by then; a WebSocket it lets the page read as well; and a page whose own name has come to mean
127.0.0.1 (DNS rebinding) may read all. But a browser says where a page is from, and by which name it looks for us.
"""

import ipaddress
import re
from collections.abc import Callable, Collection

import attrs
import h11
import orjson
import trio

from trio_agentmail.errors import printable

from ._agentmail.refusals import Refusal, not_http
from ._checks import check_texts

__all__ = ["Door", "DoorStream", "check_hosts"]

HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^][:@/?#\\%\s]+)(:[0-9]{0,5})?")
ORIGIN = re.compile(rf"https?://{HOST.pattern}", re.IGNORECASE)

OF_NO_PAGE_ELSEWHERE = ("none", "same-origin", "same-site")
"""What a browser says where nobody, or a page of this very name, has made it send a request (`Sec-Fetch-Site`)."""


def check_hosts(names: Collection[str]) -> None:
    """
    Raises:
        TypeError: They are no collection of strings.
        ValueError: One of them is no name of a host and no IP address: it has a port, for example.
    """
    check_texts("allow_hosts", names)
    for name in names:
        match = HOST.fullmatch(name)
        if _address(name) is None and (match is None or match[2] is not None):
            raise ValueError(f"a name that is allowed is a host's or an IP address, without a port, not {name!r}")


@attrs.frozen
class Door:
    """
    Attributes:
        address: Our own one, at which the request came: it may be asked for by this as well.
        names: Further names and addresses by which we may be asked for.
    """

    address: str
    names: Collection[str] = ()

    def refusal(self, head: h11.Request) -> Refusal | None:
        """Why the request is refused; `None`: it is not."""
        hosts = _values(head, b"host")
        target = head.target.decode("ascii", "replace")
        if not target.startswith("/") and "://" in target:  # as one asks a proxy: this counts, and not the header
            hosts.append(target.partition("://")[2].partition("/")[0])
        if not hosts or not all(map(self._is_ours, hosts)):
            asked = " and ".join(map(repr, hosts)) or "nobody"
            return _refusal(f"it is for the host {asked}; --allow-host or serve(allow_hosts=...) allows another name")
        if origins := _values(head, b"origin"):
            if len(origins) > 1 or not _is_loopback_origin(origins[0]):
                return _refusal(f"it is from a page of {' and '.join(map(repr, origins))}")
        elif not all(site in OF_NO_PAGE_ELSEWHERE for site in _values(head, b"sec-fetch-site")):
            return _refusal("it is from a page of another site")
        return None

    def _is_ours(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = _plain(match["name"])
        return _is_loopback(name) or name in {_plain(own) for own in (self.address, *self.names)}


def _refusal(why: str) -> Refusal:
    return Refusal(403, "forbidden", f"this AgentMail is for programs of its own machine: {printable(why, 500)}")


def _values(head: h11.Request, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in head.headers if key == name]


def _plain(name: str) -> str:
    """The one spelling of a name or address."""
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


class DoorStream(trio.abc.Stream):
    """The stream below a WebSocket. What comes is handed on when the request for one has come whole, and is let in.

    Who is refused, or sends no HTTP, is answered here; then the stream is at its end.

    Args:
        refuse: Says why a request is refused; `None`: it is not.
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

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  a Stream has it, nobody calls it
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
