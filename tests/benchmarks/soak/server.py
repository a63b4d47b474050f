"""The server of the soak, in a process of its own. It is not built on our kit.

Its WebSockets are those of the `websockets` package. Its REST API is a loop around h11, and has the three paths that
recovery asks for. Mail begins to come when the first subscription has been confirmed. Each connection is cut
`CONNECTED_FOR` seconds after its confirmation, even when no more mail comes. Mail that comes while nobody is connected
is kept for the listing and never pushed.

The server's log tells the judge what was sent. Times are those of `time.perf_counter`, which all processes share:

    mail NUMBER AT DATED                 a mail comes; it is dated DATED seconds earlier. Written before it is pushed.
    confirmed CONNECTION AT              a subscription is confirmed; connections are counted from 1
    ended CONNECTION AT HOW FIRST END    a connection is cut; the mails from FIRST to END - 1 were pushed on it
    finished AT                          no more mail comes
"""

import bisect
import json
import socket
import struct
import sys
import time
from contextlib import suppress
from datetime import datetime
from email.utils import formatdate
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import orjson
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import ServerConnection
from websockets.trio.server import serve as serve_websockets

from tests.benchmarks.processes import answer, die_with_parent

from .mails import INBOXES, inbox_of, listed, number_of, pushed, whole

CONNECTED_FOR = 4.0
"""Seconds from a confirmation to the cut."""

BACK_DATED_EVERY = 49
"""One mail in so many was under way for a while: it is dated up to `LONGEST_WAY` seconds before it came."""

LONGEST_WAY = 60

WAYS = ("reset", "close-frame", "end-of-TCP")
"""How connections are cut, in turn. A reset discards what was pushed and has not been read."""

STALLED_FOR = 1.0
"""Seconds for which a blocked push may delay the cut, which is a reset then."""


class Server:
    """Keeps the mail, pushes it, and lists it."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("w", buffering=1)
        self._mails: list[tuple[int, int]] = []
        """By number: when it came and its own time, in milliseconds since the epoch."""
        self._listings: dict[str, list[tuple[int, int]]] = {inbox_id: [] for inbox_id in INBOXES}
        """By inbox: the own time and the number of each mail, in ascending order."""
        self._mail_has_come = trio.lowlevel.ParkingLot()
        self._connections = count(1)
        self.first_confirmed = trio.Event()
        self.bugs: list[Exception] = []
        """Errors of this server in a connection; the websockets package would only log them."""
        self.latest = 0.0
        """Seconds by which a mail came later than the rate demands, at the most."""

    def _note(self, *words: object) -> None:
        print(*words, file=self._log)

    async def receive_mail(self, seconds: float, rate: float) -> None:
        """Let mail come at this rate, or as fast as the machine allows."""
        began = trio.current_time()
        for number in count():
            due = number / rate
            if due >= seconds or trio.current_time() >= began + seconds:
                break
            await trio.sleep_until(began + due)
            self.latest = max(self.latest, trio.current_time() - began - due)
            now = int(time.time() * 1000)
            # 7 s longer each time, so that all lengths occur.
            under_way = 0 if number % BACK_DATED_EVERY else number // BACK_DATED_EVERY * 7 % (LONGEST_WAY + 1)
            dated = now - under_way * 1000
            self._note("mail", number, time.perf_counter(), under_way)
            self._mails.append((now, dated))
            bisect.insort(self._listings[inbox_of(number)], (dated, number))
            self._mail_has_come.unpark_all()
        self._note("finished", time.perf_counter())

    # WebSockets

    async def serve_websocket(self, websocket: ServerConnection) -> None:
        try:
            with suppress(ConnectionClosed):
                await websocket.recv()
                await self._push(websocket)
        except Exception as exc:  # noqa: BLE001  raised when the server ends
            self.bugs.append(exc)

    async def _push(self, websocket: ServerConnection) -> None:
        first = position = len(self._mails)  # mail that arrives from now on is pushed
        await websocket.send('{"type":"subscribed"}')
        connection = next(self._connections)
        self._note("confirmed", connection, time.perf_counter())
        self.first_confirmed.set()
        deadline = trio.current_time() + CONNECTED_FOR
        how = "lost"
        try:
            with trio.move_on_at(deadline + STALLED_FOR) as stalled:
                while trio.current_time() < deadline:
                    if position == len(self._mails):
                        with trio.move_on_at(deadline):
                            await self._mail_has_come.park()
                    else:
                        mail = orjson.dumps(pushed(position, *self._mails[position]))
                        await websocket.send(mail, text=True)
                        position += 1
            how = WAYS[0] if stalled.cancelled_caught else WAYS[connection % len(WAYS)]
        except ConnectionClosed:
            pass  # by the client
        finally:
            self._note("ended", connection, time.perf_counter(), how, first, position)
        await cut(websocket, how)

    # REST

    async def serve_http(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some(2**16))
                elif isinstance(event, h11.Request):
                    status, body = self._answer(event.target.decode())
                elif isinstance(event, h11.EndOfMessage):
                    headers = [
                        ("Date", formatdate(usegmt=True)),
                        ("Content-Type", "application/json"),
                        ("Content-Length", str(len(body))),
                    ]
                    parts = [h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()]
                    await stream.send_all(b"".join(http.send(part) or b"" for part in parts))
                    http.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    return

    def _answer(self, target: str) -> tuple[int, bytes]:
        url = urlsplit(target)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        found: Any
        match [unquote(part) for part in url.path.split("/")]:
            case ["", "v0", "inboxes"]:
                found = {"count": len(INBOXES), "inboxes": [{"inbox_id": inbox_id} for inbox_id in INBOXES]}
            case ["", "v0", "inboxes", inbox_id, "messages"] if inbox_id in INBOXES:
                found = self._page(self._listings[inbox_id], asked)
            case ["", "v0", "inboxes", inbox_id, "messages", message_id] if inbox_id in INBOXES:
                number = number_of(message_id)
                found = whole(number, *self._mails[number])
            case _:
                return 404, orjson.dumps({"name": "NotFoundError", "message": "there is no such thing"})
        return 200, orjson.dumps(found)

    def _page(self, listing: list[tuple[int, int]], asked: dict[str, str]) -> dict[str, Any]:
        """One page of a listing, `after` included and `before` excluded. A token is the key of the last mail so far."""
        start = bisect.bisect_left(listing, (milliseconds(asked["after"]), 0)) if "after" in asked else 0
        end = bisect.bisect_left(listing, (milliseconds(asked["before"]), 0)) if "before" in asked else len(listing)
        limit = min(int(asked.get("limit", "50")), 100)
        token = tuple(map(int, asked["page_token"].split("-"))) if "page_token" in asked else None
        if asked.get("ascending") == "true":
            if token is not None:
                start = max(start, bisect.bisect_right(listing, token))
            keys = listing[start : min(start + limit, end)]
            there_is_more = start + limit < end
        else:
            if token is not None:
                end = min(end, bisect.bisect_left(listing, token))
            keys = listing[max(start, end - limit) : end][::-1]
            there_is_more = end - limit > start
        page = {"count": len(keys), "messages": [listed(number, *self._mails[number]) for _, number in keys]}
        return page | {"next_page_token": "{}-{}".format(*keys[-1])} if there_is_more else page


def milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


async def cut(websocket: ServerConnection, how: str) -> None:
    if how == "close-frame":
        await websocket.aclose(1012, "the service restarts")
        return
    stream = websocket.stream
    assert isinstance(stream, trio.SocketStream)
    if how == "reset":
        with suppress(trio.ClosedResourceError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


async def main(log: str, seconds: float, rate: float) -> None:
    server = Server(Path(log))
    websockets_server = partial(
        serve_websockets, server.serve_websocket, 0, host="127.0.0.1", compression=None, ping_interval=None
    )
    async with trio.open_nursery() as nursery:
        running = await nursery.start(partial(websockets_server, close_timeout=1.0))
        [listener] = await nursery.start(partial(trio.serve_tcp, server.serve_http, 0, host="127.0.0.1"))
        ports = [each.socket.getsockname()[1] for each in (listener, running.listeners[0])]
        answer({"http": f"http://127.0.0.1:{ports[0]}", "websockets": f"ws://127.0.0.1:{ports[1]}"})
        await server.first_confirmed.wait()
        cpu_before = time.process_time()
        await server.receive_mail(seconds, rate)
        cpu = time.process_time() - cpu_before
        await trio.to_thread.run_sync(sys.stdin.read)
        if server.bugs:
            raise server.bugs[0]
        answer({"cpu": cpu / seconds, "latest": server.latest})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    die_with_parent()
    trio.run(partial(main, **json.loads(sys.argv[1])))
