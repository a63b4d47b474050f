"""The files around the package agree with each other: metadata, CI, pre-commit and the docs for contributors."""

import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import trio_agentmail

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    metadata: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
    return metadata


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_github_runs_the_gate_on_each_declared_python(project: dict[str, Any]) -> None:
    workflow = read(".github/workflows/ci.yml")
    declared = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    matrix = re.search(r"^        python: \[(.*)\]$", workflow, re.MULTILINE)
    assert matrix is not None
    assert re.findall(r"\d\.\d+", matrix[1]) == declared
    assert project["requires-python"] == f">={declared[0]}"
    assert "- run: bash .ci/run\n" in workflow


def test_github_tries_the_lowest_dependencies_on_the_lowest_python(project: dict[str, Any]) -> None:
    lowest = read(".github/workflows/ci.yml").partition("lowest-dependencies:")[2]
    assert "--resolution lowest-direct -e '.[cli,test]'" in lowest
    assert f'python-version: "{project["requires-python"].removeprefix(">=")}"' in lowest


def test_every_dependency_has_a_lowest_version(project: dict[str, Any]) -> None:
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    required = [
        requirement for requirement in (*project["dependencies"], *extras) if "trio-agentmail" not in requirement
    ]
    assert [requirement for requirement in required if not re.search(r"(>=|~=)\d", requirement)] == []


def test_the_readme_and_the_contributing_guide_have_the_command_of_the_gate() -> None:
    [command] = re.findall(r'grep -m 1 -o "(.*)" README\.md', read(".ci/run"))
    command = command.replace("\\[", "[").replace("\\]", "]")
    assert command in read("README.md")
    assert command in read("CONTRIBUTING.md")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_a_page_links_to_exist(page: str) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", read(page))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_contributing_guide_lists_each_test_directory_and_each_seed() -> None:
    guide = read("CONTRIBUTING.md")
    directories = [path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")]
    assert [name for name in directories if f"tests/{name}`" not in guide] == []
    seeds = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"\b[A-Z]+_SEED\b", path.read_text())
    }
    assert seeds
    assert [name for name in seeds if f"`{name}`" not in guide] == []


def test_the_contributing_guide_lists_the_modules_of_the_public_interface() -> None:
    sentence = re.search(
        r"^.*The public interface consists of the names that (.*) export,", read("CONTRIBUTING.md"), re.M
    )
    assert sentence is not None
    modules = {module.name for module in pkgutil.iter_modules(trio_agentmail.__path__) if module.name[0] != "_"}
    modules.remove("cli")  # its interface is the command line
    public = ["trio_agentmail", *(f"trio_agentmail.{name}" for name in modules)]
    assert sorted(re.findall("`(.*?)`", sentence[1])) == sorted(public)
