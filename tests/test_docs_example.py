"""What docs/testing.md shows is what is tested."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", ["tests/examples/answering_agent.py", "tests/test_example_agent.py"])
def test_the_example_in_the_docs_is_the_one_that_is_tested(path: str) -> None:
    docs = (PROJECT / "docs/testing.md").read_text(encoding="utf-8")
    assert f"```python\n{(PROJECT / path).read_text(encoding='utf-8')}```\n" in docs
