"""The examples in the docs are the files that are tested."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "path"),
    [
        ("testing", "tests/examples/answering_agent.py"),
        ("testing", "tests/project/test_example_agent.py"),
        ("stream", "tests/examples/stopping_agent.py"),
        ("web", "tests/examples/starlette_app.py"),
        ("web", "tests/examples/quart_app.py"),
        ("web", "tests/examples/beside_asyncio.py"),
    ],
)
def test_an_example_in_the_docs_is_the_tested_file(page: str, path: str) -> None:
    docs = (PROJECT / f"docs/{page}.md").read_text(encoding="utf-8")
    assert f"```python\n{(PROJECT / path).read_text(encoding='utf-8')}```\n" in docs
