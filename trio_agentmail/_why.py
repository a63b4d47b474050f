"""Explains why a connection could not be made. Trio and TLS put the reason into an exception's cause, or nowhere."""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = [
    "CANCELLED",
    "PROXY_HINT",
    "awaited",
    "causes_of",
    "connect_error",
    "describe",
    "tls_error",
    "waiting_for",
]

PROXY_HINT = "; if only a proxy can resolve it, set $HTTPS_PROXY or pass proxy=…"

CANCELLED = (trio.Cancelled, BaseExceptionGroup)
"""What a cancelled block raises. Groups occur as well, since Trio opens TCP connections in a nursery."""

NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""OpenSSL's reasons when the bytes received are not TLS at all."""


def causes_of(failure: BaseException) -> Iterator[BaseException]:
    """Yield an exception and the exceptions that it was raised from or during, the latest first."""
    current: BaseException | None = failure
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def describe(failure: BaseException) -> str:
    """Return the first message that is not empty among an exception and its causes, or else the name of its class."""
    return next(filter(None, map(str, causes_of(failure))), type(failure).__name__)


def connect_error(failure: OSError, host: str, where: str, hint: str = "") -> OSError:
    """Return the error to raise after a failed TCP connection.

    All attempts, one for each address of the host, are named. If they failed with errors of one class, the returned
    error has that class.

    Args:
        failure: The exception from `trio.open_tcp_stream`.
        where: The host and port in words.
        hint: Appended if the name cannot be resolved; `""` for the name of a proxy.
    """
    if isinstance(failure, socket.gaierror):
        attempts: list[Exception] = [failure]
        of = "" if hint else f", for {where}"  # where names the proxy
        text = f"cannot resolve {host}{of}: {failure.strerror or describe(failure)}{hint}"
    else:
        group = failure.__cause__  # has one exception for each address
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
        failure: The exception that was raised. The error from OpenSSL is among its causes.
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
    return ssl.SSLError(1, f"no TLS with {where}: {text}")


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Record what the block waits for. If it is cancelled, `awaited` finds that in the notes of the exception.

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
