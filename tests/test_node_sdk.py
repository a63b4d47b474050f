"""The official Node SDK, unchanged but for its environment, does on the emulator what AgentMail's quickstarts show."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from tests.test_cli_emulate import emulator_process

SCRIPT = Path(__file__).with_name("node_sdk.mjs")

pytestmark = [
    pytest.mark.long,  # npm fetches the SDK from its registry
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm here"),
]


@pytest.fixture
def with_sdk(tmp_path: Path) -> Path:
    """A directory in which the SDK is installed."""
    (tmp_path / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "agentmail@0.5"]
    npm = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if npm.returncode:
        pytest.skip(f"npm cannot fetch the SDK: {npm.stderr[-200:]}")
    shutil.copy(SCRIPT, tmp_path)
    return tmp_path


async def test_the_node_sdk_creates_inboxes_sends_streams_replies_labels_gets_and_lists(with_sdk: Path) -> None:
    async with emulator_process() as (_, environment):
        node = await trio.run_process(
            ["node", SCRIPT.name, environment.http, environment.websockets],
            cwd=with_sdk,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert node.returncode == 0, node.stderr.decode()
    assert json.loads(node.stdout) == {
        "confirmed": ["agent@agentmail.to"],
        "text": "Are you there?",
        "labels": ["received", "unread", "answered"],
        "answers": [["Re: Hello", "agent@agentmail.to", True]],
    }
