"""The server: one process with a thread for each connection, which sends encoded frames from a raw socket.

Its arguments determine everything that it does. When its standard input ends, it reports what it has counted and ends,
so it cannot outlive its parent. On each connection it reads and confirms the subscription, sends the events, and closes
with code 1000. Without events, or with `stays_open`, the connection stays open. Pings are answered after the events.
The answer to a request of the REST API is an empty listing, for the stream's recovery. The server sends more than ten
times faster than any client takes.
"""

import base64
import hashlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any

from .frames import CASES, Chunk, frame
from .processes import answer, die_with_parent

CLOSE, PING, PONG = 8, 9, 10
SLICE_BYTES = 2**18

LISTING = b'{"count":0,"inboxes":[],"threads":[],"messages":[]}'
NO_MAIL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(LISTING), LISTING)


class HungUp(Exception):
    """The client closed the connection."""


class Server:
    """The arguments are those of `serve` in `processes.py`."""

    def __init__(
        self,
        case: str | None,
        count: int,
        rate: float | None,
        pause: float,
        port: int,
        stays_open: bool,
        certificate: str | None,
    ) -> None:
        self._chunk = Chunk(CASES[case](), size=1 if rate else SLICE_BYTES) if case else None
        self._count = count
        self._rate = rate
        self._pause = pause
        self._stays_open = stays_open
        self._tls: ssl.SSLContext | None = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.port = self._listener.getsockname()[1]
        self.accepted: list[float] = []
        self.pushes: list[dict[str, float]] = []

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._chunk is None:
            # If this process is killed, the kernel resets the connections that have no unsent data.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError, HungUp), connection:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as received:
                shake_hands(connection, received)
                self.accepted.append(time.perf_counter())
                read_frame(received)  # the subscription
                connection.sendall(frame(b'{"type":"subscribed"}'))
                time.sleep(self._pause)
                if self._chunk is not None:
                    self.pushes.append(self._push(connection, self._chunk))
                    if not self._stays_open:
                        connection.sendall(frame(struct.pack("!H", 1000), CLOSE))
                while True:
                    opcode, payload = read_frame(received)
                    if opcode == PING:
                        connection.sendall(frame(payload, PONG))
                    if opcode == CLOSE:
                        if self._chunk is None or self._stays_open:
                            connection.sendall(frame(payload, CLOSE))
                        break

    def _push(self, connection: socket.socket, chunk: Chunk) -> dict[str, float]:
        """Send the events. Reports the longest wait for room, and how much had been sent before it."""
        pushed, longest, before = 0, 0.0, 0
        start = time.perf_counter()
        for first in range(0, self._count, len(chunk)):
            sent = None
            if self._rate:
                time.sleep(max(0.0, start + first / self._rate - time.perf_counter()))
                sent = time.perf_counter_ns()
            data = chunk.numbered(first, min(len(chunk), self._count - first), sent)
            for offset in range(0, len(data), SLICE_BYTES):
                began = time.perf_counter()
                connection.sendall(data[offset : offset + SLICE_BYTES])
                waited = time.perf_counter() - began
                if waited > longest:
                    longest, before = waited, pushed
                pushed += len(data[offset : offset + SLICE_BYTES])
        return {"bytes": pushed, "longest_wait": longest, "bytes_before_it": before}


def shake_hands(connection: socket.socket, received: IO[bytes]) -> None:
    while not (key := read_head(received)):
        connection.sendall(NO_MAIL)
    digest = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    connection.sendall(upgrade + b"Sec-WebSocket-Accept: " + digest + b"\r\n\r\n")


def read_head(received: IO[bytes]) -> bytes:
    """Read the head of a request without a body. Returns the WebSocket key, if it has one."""
    key = b""
    if not (line := received.readline()):
        raise HungUp
    while line := received.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"sec-websocket-key":
            key = value.strip()
    return key


def read_frame(received: IO[bytes]) -> tuple[int, bytes]:
    """Read a short frame of a client. Returns its opcode and payload."""
    head = read(received, 2)
    size = head[1] & 0x7F
    if size == 126:
        [size] = struct.unpack("!H", read(received, 2))
    mask = read(received, 4)
    payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(read(received, size)))
    return head[0] & 0x0F, payload


def read(received: IO[bytes], size: int) -> bytes:
    data = received.read(size)
    if len(data) < size:
        raise HungUp
    return data


def main(**arguments: Any) -> None:
    server = Server(**arguments)
    threading.Thread(target=server.run, daemon=True).start()
    answer({"port": server.port, "listening": time.perf_counter()})
    sys.stdin.read()
    answer({"accepted": server.accepted, "pushes": server.pushes})


if __name__ == "__main__":
    die_with_parent()
    main(**json.loads(sys.argv[1]))
