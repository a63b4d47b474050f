"""The exceptions of this package. All of them derive from `AgentMailError`.

Other failures raise standard exceptions: invalid arguments raise `TypeError` or `ValueError`, a server certificate that
cannot be verified raises `ssl.SSLCertVerificationError`, and using a session that has ended raises
`trio.ClosedResourceError`.
"""

from collections.abc import Mapping

from ._printable import printable

__all__ = [
    "AgentMailError",
    "AnswerTooLargeError",
    "ApiError",
    "AuthenticationError",
    "ConnectionFailedError",
    "ConnectionLostError",
    "JournalError",
    "JournalInUseError",
    "JournalMismatchError",
    "PermissionDeniedError",
    "RequestFailedError",
    "RequestTooLargeError",
    "SubscriptionRejectedError",
]


class AgentMailError(Exception):
    """The base class of all exceptions of this package."""


class ApiError(AgentMailError):
    """AgentMail answered a request, or the WebSocket handshake, with an HTTP error.

    Attributes:
        status_code: The HTTP status.
        headers: The response headers, with lower-case names. A repeated header has its last value.
        body: The response body as text, truncated to 64 KiB; `""` if there was none.
    """

    def __init__(self, status_code: int, headers: Mapping[str, str], body: str) -> None:
        super().__init__(status_code, headers, body)
        self.status_code = status_code
        self.headers = dict(headers)
        self.body = body

    def __str__(self) -> str:
        body = printable(self.body, 500)
        return f"HTTP status {self.status_code}" + (f": {body}" if body else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(status_code={self.status_code})"


class AuthenticationError(ApiError):
    """HTTP 401: AgentMail does not accept the API key. Check `$AGENTMAIL_API_KEY` or the `api_key` argument."""


class PermissionDeniedError(ApiError):
    """HTTP 403: AgentMail accepts the API key, but the key lacks the permission for this request."""


class SubscriptionRejectedError(AgentMailError):
    """AgentMail refused the subscription with an `error` frame, or closed the connection three times in succession.

    Only close codes 1008 and 4000 to 4999 count as a refusal.

    Attributes:
        name: The `name` of the `error` frame, or the close code as in `"close 4401"`.
        message: The `message` of the frame, or the reason that came with the close code.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message

    def __str__(self) -> str:
        reason = ": ".join(filter(None, (printable(self.name, 100), printable(self.message, 500))))
        return f"the subscription was refused: {reason or 'AgentMail gave no reason'}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={printable(self.name, 100)!r})"


class ConnectionLostError(AgentMailError):
    """A connection was lost. The stream reconnects, so a consumer sees this only as the cause of another exception.

    A `Backend` and its `WebSocket` raise it.

    Attributes:
        reason: What happened, in words.
        code: The WebSocket close code; 1006 if the connection ended without a close frame.
    """

    def __init__(self, reason: str, code: int = 1006) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        # 1006 only says that there was no close frame.
        return printable(self.reason, 500) + ("" if self.code == 1006 else f" (close code {self.code})")


class RequestFailedError(AgentMailError):
    """A request to the REST API failed. Recovery catches it, and quotes it in a `RecoveryFailed` or a log message."""


class AnswerTooLargeError(RequestFailedError):
    """The response to a request exceeds the size limit. A retry would not help, so there is none."""


class RequestTooLargeError(RequestFailedError):
    """The request exceeds the size limit, for example with a Message-ID of 64 KiB in its URL. It is not sent."""


class ConnectionFailedError(AgentMailError):
    """No subscription was confirmed within `enter_timeout` or `give_up_after`. `__cause__` is the last failure.

    While a stream is being entered, this is raised at once if a proxy does not accept the credentials, or if a
    `Retry-After` ends after `enter_timeout`.
    """


class JournalError(AgentMailError):
    """The journal cannot be read or written: a full disk, a damaged file, a newer schema. The message says which.

    It is raised on entering. Later it ends the stream, because an event that is not on disk must not be delivered.
    """


class JournalInUseError(JournalError):
    """The journal is open in another process or another stream. A journal has one consumer at a time."""


class JournalMismatchError(JournalError):
    """The journal belongs to another environment or subscription, or the event belongs to another journal."""
