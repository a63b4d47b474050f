"""The official Node SDK, its WebSocket client included, does on the fake what AgentMail's README and guides show.

The SDK is installed by npm, once: it stays in pytest's cache. The program that uses it is `node_sdk.mjs`.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from trio_agentmail.testing import FakeAgentMail

VERSION = "0.5.27"
"""Of the package `agentmail`."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("npm") is None or shutil.which("node") is None, reason="npm is not installed"),
]


@pytest.fixture(scope="session")
def node_project(request: pytest.FixtureRequest) -> Path:
    """A folder in which Node finds the SDK."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("node-sdk") / VERSION
    # npm writes that file when it has done the rest.
    if not (folder / "node_modules" / ".package-lock.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"agentmail@{VERSION}", "ws@8"]
        subprocess.run(command, check=True, capture_output=True, timeout=100)
    shutil.copy(Path(__file__).with_name("node_sdk.mjs"), folder)
    return folder


async def test_the_node_sdk_does_what_its_guides_show(node_project: Path) -> None:
    fake = FakeAgentMail(api_keys={"am_key"})
    await fake.deliver(inbox_id="odd@agentmail.to", message_id="<a/b?c#d@example.com>", subject="Odd")
    with trio.fail_after(60):
        async with fake.serve() as environment:
            finished = await trio.run_process(
                ["node", "node_sdk.mjs", environment.http, environment.websockets],
                cwd=node_project,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    assert finished.returncode == 0, finished.stderr.decode()
    assert json.loads(finished.stdout) == {
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
