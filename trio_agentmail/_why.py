"""Why a connection could not be made, in words: what Trio and TLS raise has the reason somewhere below, or nowhere."""

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
    "connecting_failed",
    "story",
    "tls_failed",
    "waiting_for",
    "words_of",
]

PROXY_HINT = "; where only a proxy knows it, set $HTTPS_PROXY or pass proxy=…"

CANCELLED = (trio.Cancelled, BaseExceptionGroup)
"""What comes out of a block that is cancelled: groups as well, since Trio opens a TCP connection in a nursery."""

NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""What OpenSSL says of bytes that are no TLS at all."""


def story(failure: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was raised from or during, the latest first."""
    told: BaseException | None = failure
    while told is not None:
        yield told
        told = told.__cause__ or told.__context__


def words_of(failure: BaseException) -> str:
    """What an exception says; if nothing, what the one says that it was raised from; if nothing either, its name."""
    return next(filter(None, map(str, story(failure))), type(failure).__name__)


def connecting_failed(failure: OSError, host: str, where: str, hint: str = "") -> OSError:
    """The error to raise when TCP has failed: of the same class, where there is one.

    Args:
        failure: What `trio.open_tcp_stream` raised.
        where: Host and port in words.
        hint: What may help if the name cannot be resolved; `""` for a proxy's own name.
    """
    if isinstance(failure, socket.gaierror):
        attempts: list[Exception] = [failure]
        of = "" if hint else f", for {where}"  # the proxy
        text = f"cannot resolve {host}{of}: {failure.strerror or words_of(failure)}{hint}"
    else:
        group = failure.__cause__  # of one attempt for each address
        attempts = list(group.exceptions) if isinstance(group, ExceptionGroup) else [failure]
        text = f"{', '.join(dict.fromkeys(map(_reason, attempts)))}: {where}"
    kinds = {type(attempt) for attempt in attempts}
    error = kinds.pop() if len(kinds) == 1 else OSError
    told = error(text)
    assert isinstance(told, OSError)
    told.errno = getattr(attempts[0], "errno", None)
    return told


def _reason(attempt: BaseException) -> str:
    if isinstance(attempt, ConnectionRefusedError):
        return "connection refused"
    number = getattr(attempt, "errno", None)
    if number is None:
        return words_of(attempt)
    text = os.strerror(number)
    return text[:1].lower() + text[1:]


def tls_failed(failure: BaseException, where: str) -> ssl.SSLError:
    """The error to raise when TLS has failed: about a certificate, it is OpenSSL's own.

    Args:
        failure: What was raised: what TLS said stands behind it.
        where: Host and port in words.
    """
    said = next((cause for cause in story(failure) if isinstance(cause, OSError)), failure)
    if isinstance(said, ssl.SSLCertVerificationError):
        said.strerror = f"the certificate of {where} cannot be verified: {said.verify_message.rstrip('.')}"
        return said
    if isinstance(said, ssl.SSLEOFError):
        text = "the server hung up"
    elif isinstance(said, ssl.SSLError) and said.reason in NO_TLS:
        text = f"what answers there does not speak TLS ({words_of(said)})"
    else:
        text = words_of(said) if isinstance(said, ssl.SSLError) else _reason(said)
    return ssl.SSLError(1, f"no TLS with {where}: {text}")


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say what the block waits for to whoever cancels it: it is in the notes of what comes out, where `awaited` looks.

    Args:
        what: In words, for example "connecting to example.com".
    """
    try:
        yield
    except CANCELLED as exc:
        exc.add_note(what)
        raise


def awaited(cancelled: BaseException) -> str | None:
    """What was waited for when it was cancelled."""
    return next(iter(getattr(cancelled, "__notes__", [])), None)
