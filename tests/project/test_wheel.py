"""The tests also pass where the package is installed from a wheel, not in editable mode."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

TESTS = [
    # These look into the modules of the package, whose assertions pytest rewrites after an installation from a wheel.
    "tests/project/test_typing.py::test_all_lists_every_public_name_and_no_other",
    "tests/cli/test_commands.py::test_the_package_can_be_run_as_a_module",
    "tests/cli/test_crash_demo.py::test_the_agent_can_be_run_as_a_module",
    "tests/journal/test_crash.py",  # its processes import the package too
    "tests/project/test_installed.py",
    "tests/project/test_example_agent.py",
]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_tests_pass_where_the_package_is_installed_from_a_wheel(tmp_path: Path) -> None:
    # The new installation comes first in the path, before the present one.
    site, outside = tmp_path / "site", tmp_path / "outside"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, PROJECT], check=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", site, wheel], check=True)
    shutil.copytree(PROJECT / "tests", outside / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", outside)
    where = "from trio_agentmail import _pytest_plugin as plugin, events; print(plugin.__file__, events.__file__)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment["PYTHONPATH"] = str(site)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-m",
        "not long",
        "-p",
        "no:cacheprovider",
        "-q",
        *TESTS,
    ]

    def run(*command: str) -> str:
        result = subprocess.run(
            command, cwd=outside, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    assert run(sys.executable, "-c", where).count(str(site)) == 2
    run(*command)
