"""The file of a journal, and the engines with which the tests of what a journal decides are run."""

from pathlib import Path

import pytest

from tests.helpers.journals import Engine, new_engine

ENGINES = ["sqlite", "memory"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a journal, in a directory of its own."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "agent.db"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return new_engine(request.param, tmp_path)
