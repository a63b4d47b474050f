"""The interface between a stream and its environment: the network, the clock and the disk."""

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import httpx2  # imported on first use: it takes as long as the rest of this package

T = TypeVar("T")

__all__ = ["Backend", "WebSocket", "installed", "installed_backend"]


class WebSocket(Protocol):
    """An open WebSocket connection, as `Backend.open_websocket` yields it.

    One task calls `receive`. Other tasks may call `send`, `ping` and `close` at the same time.
    """

    async def send(self, text: str) -> None:
        """Send a text message.

        Raises:
            ConnectionLostError: The connection has ended.
        """

    async def receive(self) -> bytes:
        """Return the next message. A text message is returned as UTF-8.

        A call that is cancelled loses nothing: the next call returns the message.

        Raises:
            ConnectionLostError: The connection has ended, and all messages before its end have been returned. `code`
                is the close code, or 1006 if the server sent no close frame.
        """

    async def ping(self) -> None:
        """Send a ping and wait for its pong. The pong may be processed only while a task is in `receive`.

        Raises:
            ConnectionLostError: The connection has ended.
        """

    def stop_receiving(self) -> None:
        """Discard messages that arrive from now on. Messages that arrived earlier can still be received."""

    async def close(self) -> None:
        """Close with code 1000, and wait for the server's close frame. The caller sets a timeout."""

    @property
    def silent_since(self) -> float | None:
        """When the current silence began, on Trio's clock; None while nothing waits for bytes from the server.

        A silence begins when the connection starts to wait for bytes, and the next byte ends it.
        """

    @property
    def last_received(self) -> float:
        """When the last byte arrived, by `Backend.now`. Before the first byte, when the connection was made."""

    @property
    def last_heard(self) -> float:
        """The same moment as `last_received`, on Trio's clock."""

    @property
    def read_until(self) -> float:
        """A time on Trio's clock: `receive` has returned everything that the server sent before it.

        A time that is too early is safe: the stream then only remembers delivered events for longer.
        """


class Backend(Protocol):
    """The environment of a stream: the network, or `FakeAgentMail` in tests. Provisional: members may be added."""

    @property
    def api_key(self) -> str | None:
        """The API key to use if the caller gives none and `$AGENTMAIL_API_KEY` is not set."""

    def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AbstractAsyncContextManager[WebSocket]:
        """Open a WebSocket. Leaving the context manager closes the connection at once, without a close frame.

        A `receive` that is waiting then raises `ConnectionLostError` with code 1006.

        Args:
            url: A `ws://` or `wss://` URL.
            headers: Additional headers of the handshake. They contain the API key.
            max_message_size: Characters of a text message, bytes of a binary one. A larger message ends the connection
                with close code 1009.
            ssl_context: The context for `wss://`; None for the default.

        Raises:
            ApiError: The server refused the handshake: `AuthenticationError` for 401, `PermissionDeniedError` for 403.
            ConnectionLostError: The server closed the connection during the handshake, or is not a WebSocket server.
            OSError: The server cannot be reached, or TLS failed.
        """

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> "httpx2.AsyncBaseTransport":
        """Return the transport for requests to the REST API. The caller closes it.

        Its errors are `httpx2.HTTPError` and `OSError`. Any other exception is a bug and ends the stream.
        """

    def now(self) -> float:
        """Return the time of day, in seconds since the epoch."""

    async def run_sync(self, function: Callable[[], T]) -> T:
        """Call a blocking function, such as one that reads from disk, without blocking the event loop."""


# This is a global, because the fixtures and the tasks of a test need not share the context of a ContextVar.
_installed: Backend | None = None


def installed() -> Backend | None:
    """Return the backend of `installed_backend`, or None outside its block."""
    return _installed


@contextmanager
def installed_backend(backend: Backend) -> Iterator[None]:
    """Make this backend the default for streams that are opened within the block.

    Raises:
        RuntimeError: Another backend is installed already.
    """
    global _installed
    if _installed is not None:
        raise RuntimeError(f"{type(_installed).__name__} is installed already; install one backend at a time")
    _installed = backend
    try:
        yield
    finally:
        _installed = None
