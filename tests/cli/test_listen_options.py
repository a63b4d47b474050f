"""The options of `trio-agentmail listen`, and one clear line for each failure."""

import logging
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import HOSTILE, KEY, run
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe
from trio_agentmail.cli import _listen_command
from trio_agentmail.cli._listen import explain
from trio_agentmail.cli._output import Output
from trio_agentmail.errors import (
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    PermissionDeniedError,
    SubscriptionRejectedError,
)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (AuthenticationError(401, {}, '{"name": "unknown_api_key"}'), ["AGENTMAIL_API_KEY", "401", "unknown_api_key"]),
        (PermissionDeniedError(403, {}, ""), ["permissions", "403"]),
        (ApiError(404, {}, ""), ["404"]),
        (SubscriptionRejectedError("forbidden", "label_spam_read is forbidden"), ["--event-type", "label_spam_read"]),
        (ConnectionFailedError("not subscribed within enter_timeout"), ["not subscribed"]),
        (ssl.SSLCertVerificationError("self-signed"), ["certificate", "self-signed"]),
        (ConnectionFailedError(HOSTILE), ["forged"]),
    ],
)
def test_a_failure_is_one_clear_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, words: list[str]
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(_listen_command, "listen", fail)
    result = run("listen")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.isprintable()
    assert all(word in line for word in words)
    assert explain(failure) in line


@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_is_one_clear_line_and_status_1(key: str | None) -> None:
    result = run("listen", key=key)
    assert result.exit_code == 1
    assert result.stderr == "Error: no API key: set the environment variable AGENTMAIL_API_KEY\n"


def test_a_key_that_no_header_can_carry_is_one_clear_line_without_the_key() -> None:
    result = run("listen", key=KEY + "\n")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "white space" in line
    assert KEY not in line


@pytest.mark.parametrize(
    "url",
    [
        "ws://agentmail.example",  # would send the key unencrypted
        "https://ws.agentmail.to",
        "nonsense",
        f"wss://ws.agentmail.to?api_key={KEY}",
        "ws://localhost:99999",
        "ws://[::1",
    ],
)
def test_an_unsafe_url_is_refused_with_status_2_and_not_shown(url: str) -> None:
    result = run("listen", "--websocket-url", url)
    assert result.exit_code == 2
    assert "write wss://host" in result.stderr
    assert KEY not in result.stderr


def test_an_unsafe_http_url_is_refused_as_well() -> None:
    for url in ("http://agentmail.example", "wss://ws.agentmail.to", f"https://api.agentmail.to?api_key={KEY}"):
        result = run("listen", "--websocket-url", "ws://localhost:1", "--http-url", url)
        assert result.exit_code == 2
        assert "write https://host" in result.stderr
        assert KEY not in result.stderr


def test_http_url_needs_websocket_url() -> None:
    result = run("listen", "--http-url", "http://localhost:1")
    assert result.exit_code == 2
    assert "--http-url needs --websocket-url" in result.stderr


def test_a_journal_in_memory_is_refused() -> None:
    result = run("listen", "--journal", ":memory:")
    assert result.exit_code == 2
    assert "would keep nothing" in result.stderr


def test_a_journal_that_cannot_be_opened_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "aunt").write_bytes(b"a letter to my aunt " * 1000)
    result = run("listen", "--websocket-url", "ws://localhost:1", "--journal", str(tmp_path / "aunt"))
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: the journal ")


def test_environment_and_websocket_url_exclude_each_other() -> None:
    result = run("listen", "--environment", "eu", "--websocket-url", "ws://localhost:1")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_an_empty_filter_is_refused() -> None:
    result = run("listen", "--pod", "")
    assert result.exit_code == 2
    assert "pod_ids" in result.stderr


@pytest.mark.parametrize("inbox_id", ["", "not an inbox", "agent", "@agentmail.to", "a@b@c", "agent@agentmail.to\n"])
@pytest.mark.parametrize("command", ["listen", "emulate", "trigger message.received"])
def test_an_inbox_must_be_an_address(command: str, inbox_id: str) -> None:
    result = run(*command.split(), "--inbox", inbox_id)
    assert result.exit_code == 2
    assert "agent@agentmail.to" in result.stderr or "empty" in result.stderr
    assert "\n\n\n" not in result.stderr


def test_an_unknown_event_type_is_a_warning_and_is_subscribed_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Subscribe] = []

    async def note(_output: Output, subscribe: Subscribe, *_: Any, **__: Any) -> None:
        asked.append(subscribe)

    monkeypatch.setattr(_listen_command, "listen", note)
    result = run("listen", "--event-type", "mesage.received", "--event-type", "message.sent")
    assert result.exit_code == 0
    assert result.stderr == ("Warning: unknown event type 'mesage.received'; did you mean 'message.received'?\n")
    assert asked[0].event_types == ("mesage.received", "message.sent")


def test_the_options_become_the_arguments_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    async def note(
        _: Output, *arguments: Any, recovery: Recovery | None, journal: SQLiteJournal | None, as_json: bool
    ) -> None:
        calls.append((*arguments, recovery, repr(journal), as_json))

    monkeypatch.setattr(_listen_command, "listen", note)
    filters = ("--inbox", "a@x", "--inbox", "b@x", "--pod", "p", "--event-type", "message.sent")
    assert run("listen", "--environment", "eu", *filters).exit_code == 0
    assert run("listen", "--journal", "/nowhere/agent.db", "--json").exit_code == 0
    assert run("listen", "--websocket-url", "wss://a.example/v0/").exit_code == 0
    assert run("listen", "--websocket-url", "ws://[::1]:1", "--http-url", "https://b.example:2/").exit_code == 0
    assert calls == [
        (
            Subscribe(inbox_ids=["a@x", "b@x"], pod_ids=["p"], event_types=["message.sent"]),
            AgentMailEnvironment.EU_PROD,
            Recovery(),
            "None",
            False,
        ),
        (Subscribe(), AgentMailEnvironment.PROD, Recovery(), "SQLiteJournal('/nowhere/agent.db')", True),
        (
            Subscribe(),
            AgentMailEnvironment(websockets="wss://a.example", http="https://a.example"),
            None,
            "None",
            False,
        ),
        (
            Subscribe(),
            AgentMailEnvironment(websockets="ws://[::1]:1", http="https://b.example:2"),
            Recovery(),
            "None",
            False,
        ),
    ]


@pytest.mark.parametrize(("options", "shown"), [([], ["trouble"]), (["-v"], ["subscribed", "trouble"])])
def test_warnings_are_always_logged_and_the_rest_on_request(
    monkeypatch: pytest.MonkeyPatch, options: list[str], shown: list[str]
) -> None:
    logger = logging.getLogger("trio_agentmail")
    handlers = [*logger.handlers]

    async def log(*_: Any, **__: Any) -> None:
        logger.info("subscribed")
        logger.warning("trouble")

    monkeypatch.setattr(_listen_command, "listen", log)
    result = run("listen", *options)
    assert [line.split()[-1] for line in result.stderr.splitlines()] == shown
    assert logger.handlers == handlers
