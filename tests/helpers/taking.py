"""Check how long something takes, by Trio's clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio


@asynccontextmanager
async def taking(seconds: float) -> AsyncIterator[None]:
    """Check that the block takes this long."""
    started = trio.current_time()
    yield
    assert trio.current_time() - started == pytest.approx(seconds, abs=1e-6)
