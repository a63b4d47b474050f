"""What goes wrong between us and AgentMail; all of it derives from `AgentMailError`.

The rest has its own names already: bad arguments are `TypeError` and `ValueError`, a server certificate that cannot be
verified is `ssl.SSLCertVerificationError`, and a session that has ended is `trio.ClosedResourceError`.
"""

from collections.abc import Mapping

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
    "printable",
    "refusal",
]


class AgentMailError(Exception):
    """The base of all errors of this package."""


class ApiError(AgentMailError):
    """AgentMail answered a request (the WebSocket handshake included) with an HTTP error.

    Attributes:
        status_code: The HTTP status.
        headers: The answer's headers; the names in lower case, of repeated ones the last.
        body: The answer's body as text, cut at 64 KiB; `""` when there was none.
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
    """401: AgentMail does not know the API key. Check `$AGENTMAIL_API_KEY`, or what `api_key` is given."""


class PermissionDeniedError(ApiError):
    """403: AgentMail knows the API key, and does not let it do this."""


MAX_BODY = 2**16
"""Bytes, and so characters, of a refusal's body that are kept."""


def refusal(status_code: int, headers: Mapping[str, str], body: str) -> ApiError:
    """The error that an HTTP status means."""
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status_code, ApiError)
    return error(status_code, headers, body[:MAX_BODY])


class SubscriptionRejectedError(AgentMailError):
    """AgentMail refused the subscription: by an `error` frame, or by closing before it was confirmed.

    Attributes:
        name: The `name` of the `error` frame, or `"close 4401"` for a close code.
        message: The `message` of the frame, or the reason given with the close code.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message

    def __str__(self) -> str:
        told = ": ".join(filter(None, (printable(self.name, 100), printable(self.message, 500))))
        return f"the subscription was refused: {told or 'AgentMail gave no reason'}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={printable(self.name, 100)!r})"


class ConnectionLostError(AgentMailError):
    """One connection ended. The stream makes another: it is seen only as the cause of a `ConnectionFailedError`.

    Attributes:
        reason: What happened, in words.
        code: The WebSocket close code, 1006 where the connection ended without a close frame.
    """

    def __init__(self, reason: str, code: int = 1006) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        # 1006 means that there was no close frame, and so says nothing.
        return printable(self.reason, 500) + ("" if self.code == 1006 else f" (close code {self.code})")


class RequestFailedError(AgentMailError):
    """A request to the REST API got no answer that makes sense. It is seen only in what `RecoveryFailed` says."""


class AnswerTooLargeError(RequestFailedError):
    """The answer to a request is larger than it may be. It would be so again, so it is not asked for again."""


class RequestTooLargeError(RequestFailedError):
    """The request is larger than it may be, as with a Message-ID of 64 KiB in its URL. It is not made."""


class ConnectionFailedError(AgentMailError):
    """Transient trouble outlasted `enter_timeout` or `give_up_after`. `__cause__` is the last failure."""


class JournalError(AgentMailError):
    """The journal cannot be read or written: a full disk, a damaged file, a newer schema. The text says which.

    On entering it raises; later it ends the stream, since what is not on disk must not be handed out.
    """


class JournalInUseError(JournalError):
    """Another process, or another stream of this one, has the journal open. One consumer at a time."""


class JournalMismatchError(JournalError):
    """The journal belongs to another environment or subscription, or an event to another journal."""


def printable(text: str, limit: int) -> str:
    """Text that somebody else chose, safe to show on a terminal: no control characters, one line, cut."""
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return " ".join(shown.split()) if len(text) <= limit else " ".join(shown[:limit].split()) + "…"
