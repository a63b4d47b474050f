"""Slow initialization, done once per process when the first stream is opened, without blocking the event loop."""

import ssl
from collections.abc import Callable

import trio

from ._backend import Backend
from ._decoders import generate_all
from ._network import NetworkBackend, default_ssl_context
from ._settings import Settings
from ._structuring import converter

__all__ = ["import_in_thread"]

_done: set[Callable[[], None]] = set()


async def import_in_thread(backend: Backend, settings: Settings, *, with_recovery: bool) -> None:
    """Import modules and make a TLS context, in a thread. Otherwise, this would block the event loop for 0.15 s.

    Python switches between threads every five milliseconds, so other tasks can run meanwhile. A backend other than the
    network may answer the handshake at once, so for such a backend the decoding functions are generated here as well.
    Then, on a mock clock, the first stream of a process takes as many scheduling steps as later ones, and tests that
    count steps or draw them from a seed are reproducible.

    Raises:
        ImportError: httpx2 or one of its dependencies is not installed properly.
    """
    steps = [_import_stream]
    if with_recovery:
        steps.append(_import_httpx2)
    if isinstance(backend, NetworkBackend) and settings.ssl_context is None and _is_encrypted(settings):
        steps.append(_make_tls_context)
    if not isinstance(backend, NetworkBackend):
        steps.append(generate_all)
    missing = [step for step in steps if step not in _done]
    if missing:
        await backend.run_sync(lambda: _do(missing))
    else:
        await trio.lowlevel.checkpoint()


def _do(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()
        _done.add(step)  # not earlier: a second stream must wait for a module that is still being imported


def _import_stream() -> None:
    from . import _supervisor  # noqa: F401  imports recovery as well

    converter()


def _import_httpx2() -> None:
    import httpx2

    httpx2.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # imports the rest of httpx2


def _make_tls_context() -> None:
    default_ssl_context()


def _is_encrypted(settings: Settings) -> bool:
    return settings.environment.websockets.lower().startswith("wss:")
