"""Generates the decoding functions of the event classes ahead of time, so that no event has to wait for one."""

from collections.abc import Iterator
from typing import Any

import trio

from ._codec import decoded_classes
from ._structuring import hook_of

__all__ = ["generate_all", "generate_step_by_step"]


def generate_all() -> None:
    """Generate all decoding functions at once, which takes tens of milliseconds."""
    for cls in decoded_classes():
        hook_of(cls)


_remaining: Iterator[Any] | None = None
"""The classes whose functions have not been generated yet. All streams of the process share them."""


async def generate_step_by_step() -> None:
    """Generate the decoding functions without blocking the event loop, one class per checkpoint."""
    global _remaining
    if _remaining is None:
        _remaining = iter(decoded_classes())
    for cls in _remaining:
        hook_of(cls)
        await trio.lowlevel.checkpoint()
