"""Exceptions and messages that explain why a connection or a request failed.

Trio and TLS hide the reason in the causes of an exception.
"""

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import trio

from .errors import ApiError, AuthenticationError, PermissionDeniedError

__all__ = [
    "CANCELLED",
    "MAX_BODY",
    "PROXY_HINT",
    "awaited",
    "causes_of",
    "connect_error",
    "describe",
    "refusal",
    "tls_error",
    "waiting_for",
]

PROXY_HINT = "; if only a proxy can resolve it, set $HTTPS_PROXY or pass proxy=…"

CANCELLED = (trio.Cancelled, BaseExceptionGroup)
"""The exceptions of a cancelled block. Groups occur as well, because Trio opens TCP connections in a nursery."""

MAX_BODY = 2**16
"""Maximum length of an `ApiError`'s body, in characters, and maximum number of bytes to read from the response."""

NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""OpenSSL's reasons for received bytes that are not TLS."""


def causes_of(failure: BaseException) -> Iterator[BaseException]:
    """Yield an exception and the chain of its causes and contexts."""
    current: BaseException | None = failure
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def describe(failure: BaseException) -> str:
    """Return the first non-empty message of an exception and its causes, or else the name of its class."""
    return next(filter(None, map(str, causes_of(failure))), type(failure).__name__)


def connect_error(failure: OSError, host: str, where: str, hint: str = "") -> OSError:
    """Return the error to raise after a failed TCP connection.

    There is one attempt for each address of the host, and the message names the reasons of all. If all attempts
    failed with errors of one class, the returned error has that class.

    Args:
        failure: The exception from `trio.open_tcp_stream`.
        where: The host and port in words.
        hint: Text to append if the name cannot be resolved; `""` for the name of a proxy.
    """
    if isinstance(failure, socket.gaierror):
        attempts: list[Exception] = [failure]
        of = "" if hint else f", for {where}"  # without a hint, the host is a proxy, and `where` names it
        text = f"cannot resolve {host}{of}: {failure.strerror or describe(failure)}{hint}"
    else:
        group = failure.__cause__  # a group with one exception for each address
        attempts = list(group.exceptions) if isinstance(group, ExceptionGroup) else [failure]
        text = f"{', '.join(dict.fromkeys(map(_reason, attempts)))}: {where}"
    kinds = {type(attempt) for attempt in attempts}
    error = kinds.pop() if len(kinds) == 1 else OSError
    described = error(text)
    assert isinstance(described, OSError)
    described.errno = getattr(attempts[0], "errno", None)
    return described


def _reason(attempt: BaseException) -> str:
    if isinstance(attempt, ConnectionRefusedError):
        return "connection refused"
    number = getattr(attempt, "errno", None)
    if number is None:
        return describe(attempt)
    text = os.strerror(number)
    return text[:1].lower() + text[1:]


def tls_error(failure: BaseException, where: str) -> ssl.SSLError:
    """Return the error to raise after a failed TLS handshake. A certificate error stays OpenSSL's own exception.

    Args:
        failure: The exception that Trio or httpx2 raised. OpenSSL's error is among its causes.
        where: The host and port in words.
    """
    cause = next((cause for cause in causes_of(failure) if isinstance(cause, OSError)), failure)
    if isinstance(cause, ssl.SSLCertVerificationError):
        cause.strerror = f"the certificate of {where} cannot be verified: {cause.verify_message.rstrip('.')}"
        return cause
    if isinstance(cause, ssl.SSLEOFError):
        text = "the server closed the connection"
    elif isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
        text = f"the server there does not speak TLS ({describe(cause)})"
    else:
        text = describe(cause) if isinstance(cause, ssl.SSLError) else _reason(cause)
    return ssl.SSLError(1, f"cannot establish TLS with {where}: {text}")


def refusal(status_code: int, headers: Mapping[str, str], body: str) -> ApiError:
    """Return the exception for an HTTP error status."""
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status_code, ApiError)
    return error(status_code, headers, body[:MAX_BODY])


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Record what the block waits for, for `awaited`. If the block is cancelled, the exception gets a note.

    Args:
        what: A description, for example "connecting to example.com".
    """
    try:
        yield
    except CANCELLED as exc:
        exc.add_note(what)
        raise


def awaited(cancelled: BaseException) -> str | None:
    """Return what the cancelled block was waiting for, if it was recorded."""
    return next(iter(getattr(cancelled, "__notes__", [])), None)
