"""The examples of AgentMail's README and guides, run with the official Node SDK and its WebSocket client.

Only the environment of the SDK is changed, to that of an emulator. npm installs the SDK once into pytest's cache. The
program that uses it is `node_sdk.mjs`.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from tests.cli.test_emulate import emulator_process, run

SCRIPT = Path(__file__).with_name("node_sdk.mjs")

VERSION = "0.5.27"
"""The version of the package `agentmail`."""

ODD = b"To: odd@agentmail.to\r\nMessage-ID: <a/b?c#d@example.com>\r\nSubject: Odd\r\n\r\n"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm here"),
]


@pytest.fixture(scope="session")
def with_sdk(request: pytest.FixtureRequest) -> Path:
    """Return a directory in which the SDK is installed."""
    cache = request.config.cache
    assert cache is not None
    directory = cache.mkdir("node-sdk") / VERSION
    # npm writes this file last.
    if not (directory / "node_modules" / ".package-lock.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--no-audit", "--no-fund", f"agentmail@{VERSION}"]
        npm = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        assert npm.returncode == 0, npm.stderr
    shutil.copy(SCRIPT, directory)
    return directory


async def test_the_node_sdk_does_what_its_guides_show(with_sdk: Path, tmp_path: Path) -> None:
    eml = tmp_path / "odd.eml"
    eml.write_bytes(ODD)
    odd = ("trigger", "message.received", "--eml", str(eml), "--inbox", "odd@agentmail.to")
    async with emulator_process() as (_, environment):
        told = await trio.to_thread.run_sync(lambda: run(*odd, "--emulator", environment.http))
        assert told.exit_code == 0, told.output
        node = await trio.run_process(
            ["node", SCRIPT.name, environment.http, environment.websockets],
            cwd=with_sdk,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert node.returncode == 0, node.stderr.decode()
    assert json.loads(node.stdout) == {
        "inboxes": {"once": True, "got": "Agent", "listed": 3, "updated": {"n": 1}},
        "subscribed": ["agent@agentmail.to"],
        "mail": {
            "from": True,
            "text": "Hi!",
            "labels": ["received", "done"],
            "thread": [True, True, True],
            "ours": [4],
            "everywhere": 3,
            "forwarded": "Fwd: Hi",
            "attachment": "data",
            "raw": True,
            "batch": 1,
            "slash": "Odd",
        },
        "errors": [
            ["NotFoundError", 404, "not_found"],
            ["ValidationError", 400, "validation_error"],
            ["ConflictError", 409, "conflict"],
        ],
        "pods": [["Acme", "default"], True, 1],
        "events": ["message.received", *["message.sent", "message.delivered"] * 3],
        "received": True,
        "left": 3,
    }
