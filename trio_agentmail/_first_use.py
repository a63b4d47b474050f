"""What takes long, and only once in a process: done while a stream is opened, so that the event loop is not held up."""

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import trio

from ._backend import Backend
from ._codec import decoded_classes
from ._network import NetworkBackend, default_ssl_context
from ._settings import Settings
from ._structuring import converter, hook_of

__all__ = ["import_in_thread", "write_functions"]

_done: set[Callable[[], None]] = set()


async def import_in_thread(backend: Backend, settings: Settings, *, with_recovery: bool) -> None:
    """Do in a thread what would hold up the event loop for 0.15 s: importing httpx2, and making a TLS context.

    Python hands itself on between its threads every five milliseconds, so other tasks have their turn meanwhile. A
    backend that is not the network answers a handshake at once, so the functions that decode are written here as well.
    On a mock clock, the first stream of a process takes as many scheduling steps as the others: a test that counts
    them, or that draws what they do from a seed, has the same story each time.

    Raises:
        ImportError: httpx2, or something that it needs, is not installed as it should be.
    """
    steps = [_import_stream]
    if with_recovery:
        steps.append(_import_httpx2)
    if isinstance(backend, NetworkBackend) and settings.ssl_context is None and _is_encrypted(settings):
        steps.append(_make_tls_context)
    if not isinstance(backend, NetworkBackend):
        steps.append(_write_all)
    missing = [step for step in steps if step not in _done]
    if missing:
        await backend.run_sync(lambda: _do(missing))
    else:
        await trio.lowlevel.checkpoint()


def _do(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()
        _done.add(step)  # when it is complete: a module that is still being imported makes others wait for it


def _import_stream() -> None:
    from . import _supervisor  # noqa: F401  and recovery with it

    converter()


def _import_httpx2() -> None:
    import httpx2

    httpx2.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # the first one imports the rest of it


def _make_tls_context() -> None:
    default_ssl_context()


def _write_all() -> None:
    for cls in decoded_classes():
        hook_of(cls)


def _is_encrypted(settings: Settings) -> bool:
    return settings.environment.websockets.lower().startswith("wss:")


_unwritten: Iterator[Any] | None = None
"""The classes whose functions are to be written: all streams of the process share the work."""


async def write_functions() -> None:
    """Write the functions that decode, a class a checkpoint, so that the first event of a class finds its own there."""
    global _unwritten
    if _unwritten is None:
        _unwritten = iter(decoded_classes())
    for cls in _unwritten:
        hook_of(cls)
        await trio.lowlevel.checkpoint()
