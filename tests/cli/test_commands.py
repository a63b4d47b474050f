"""The command line keeps its promises: what it prints, how it ends, and that no mail can draw on the terminal."""

import json
import logging
import math
import os
import pty
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

import attrs
import click
import pytest
import trio
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from rich.text import Text
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
from tests.helpers.as_main import run_as_main
from trio_agentmail import cli
from trio_agentmail._codec import decode_event
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._journal.sqlite_store import read_journal
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe
from trio_agentmail.cli import _commands, _demo
from trio_agentmail.cli._commands import commands
from trio_agentmail.cli._listen import explain, listen
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.cli._render import event_json, event_line
from trio_agentmail.cli._signals import Interrupted, stop_signals
from trio_agentmail.cli._verdict import Record, judge, ranges, summary
from trio_agentmail.errors import (
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    PermissionDeniedError,
    SubscriptionRejectedError,
)
from trio_agentmail.events import (
    AgentArmorManualOverride,
    AgentArmorResult,
    Bounce,
    CalendarEvent,
    CalendarEventStartingEvent,
    CaughtUp,
    Complaint,
    Delivery,
    Disconnected,
    Domain,
    DomainVerifiedEvent,
    ErrorEvent,
    Event,
    EventType,
    Message,
    MessageBouncedEvent,
    MessageComplainedEvent,
    MessageDeliveredEvent,
    MessageOpenedEvent,
    MessageReceivedEvent,
    MessageRejectedEvent,
    MessageSecurity,
    MessageSecurityCompletedEvent,
    MessageSecurityOverride,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    Open,
    Recipient,
    RecoveryFailed,
    Reject,
    Send,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.testing import FakeAgentMail, encode_event

INBOX = "agent@agentmail.to"
KEY = "am_a_key_that_nobody_may_see"
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)

# Clears the screen; markup of rich; turns the direction of writing around; C1's CSI; a line of its own; DEL; a
# zero-width space; half a surrogate pair cannot be sent.
HOSTILE = "\x1b[2J[red]r[/red]\u202etxt.exe\x9b31m\r\n12:00:00 forged\x7f\u200b\u2028:smile:"


def environment_for(**variables: str) -> dict[str, str]:
    """The variables for a command: none that colours, none with a key, but what is given."""
    inherited = ("PATH", "HOME", "LANG", "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: os.environ[name] for name in inherited if name in os.environ} | variables


@asynccontextmanager
async def running(*arguments: str, key: str = KEY, **variables: str) -> AsyncIterator[trio.Process]:
    """The command as a process of its own, with pipes to its output."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "trio_agentmail.cli", *arguments],
                env=environment_for(AGENTMAIL_API_KEY=key, **variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdout, process.stderr:
            with trio.fail_after(100):  # a limit for what never comes, on a slow machine too
                yield process
                await process.wait()
        nursery.cancel_scope.cancel()


async def read_until(process: trio.Process, marker: bytes) -> bytes:
    """What the process writes, up to a marker in it."""
    assert process.stdout is not None
    data = b""
    while marker not in data:
        received = await process.stdout.receive_some()
        assert received, data
        data += received
    return data


async def read_rest(stream: Any) -> bytes:
    return b"".join([bytes(data) async for data in stream])


# As a process: `listen`


async def test_listen_writes_a_large_event_whole_and_stays_alive_meanwhile() -> None:
    fake = FakeAgentMail()
    text = "zażółć gęślą jaźń, \U0001f600\n" * 40_000
    async with fake.serve() as environment:
        async with running("listen", "--json", "--websocket-url", environment.websockets) as process:
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, text=text)
            # Nobody reads yet. The pipe is full, and the connection is made again all the same: the loop is not held.
            await read_until(process, b"\n")
            await fake.drop_connections()
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, text="the last")
            assert process.stdout is not None
            chunks = [b""]
            while not (b"the last" in b"".join(chunks[-2:]) and chunks[-1].endswith(b"\n")):
                chunks.append(bytes(await process.stdout.receive_some()))
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    mail, *_, last = map(json.loads, b"".join(chunks).splitlines())
    assert mail["message"]["text"] == text
    assert last["message"]["text"] == "the last"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_listen_prints_a_line_an_event_and_leaves_politely_when_told_to_stop(signum: signal.Signals) -> None:
    fake = FakeAgentMail(api_keys=[KEY])
    async with fake.serve() as environment:
        async with running(
            "listen", "--websocket-url", environment.websockets, "--inbox", INBOX, "--event-type", "message.received"
        ) as process:
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, from_="Jane <jane@example.com>", subject="Zażółć gęślą jaźń")
            await fake.deliver(inbox_id="somebody@else.example", subject="not ours")
            await fake.deliver(inbox_id=INBOX, subject="the last")
            output = await read_until(process, b"the last\n")
            process.send_signal(signum)
            assert await process.wait() == 0
            assert await read_rest(process.stderr) == b""
        await fake.wait_connected(0)
    assert fake.close_codes == [1000]
    assert fake.subscriptions == [Subscribe(inbox_ids=[INBOX], event_types=["message.received"])]
    first, second, third = (line[8:] for line in output.decode().splitlines())
    assert first == f"  subscribed  {INBOX}  message.received"
    assert second == f"  message.received  {INBOX}  Jane <jane@example.com>  Zażółć gęślą jaźń"
    assert third.endswith("the last")
    assert b"\x1b" not in output


async def test_listen_writes_json_that_a_program_can_read_line_by_line() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        async with running("listen", "--json", "--websocket-url", environment.websockets + "/v0/") as process:
            await fake.wait_subscribed()
            event = await fake.deliver(inbox_id=INBOX, subject=HOSTILE, text="Smile 😀\nand again")
            await fake.send_raw("\x1b[2Jno JSON")
            await fake.drop_connections()
            await fake.wait_subscribed()
            output = b""
            while output.count(b"\n") < 5:
                output += await read_until(process, b"\n")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    assert re.fullmatch(rb"[ -~\n]*", output)
    confirmation, mail, unknown, disconnected, again = map(json.loads, output.decode().splitlines())
    assert confirmation == again == {"type": "subscribed"}
    assert mail == json.loads(encode_event(event)) | {"origin": "live"}
    assert mail["message"]["subject"] == HOSTILE
    assert (unknown["type"], unknown["raw"]) == ("unknown", "\x1b[2Jno JSON")
    assert (disconnected["type"], disconnected["code"]) == ("disconnected", 1006)
    assert datetime.fromisoformat(disconnected["last_received"]).tzinfo is not None


async def test_without_http_url_another_server_is_all_that_the_key_goes_to() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        async with running("listen", "-v", "--websocket-url", environment.websockets) as process:
            await fake.wait_subscribed()
            await fake.drop_connections()
            await fake.deliver(inbox_id=INBOX, subject="into the gap")
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, subject="the last")
            output = await read_until(process, b"the last\n")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            # Recovery would have begun with a request, at once, and complained of whoever it had asked.
            assert b"recover" not in await read_rest(process.stderr)
    assert b"into the gap" not in output
    assert b"caught up" not in output
    assert not fake.requests


async def test_with_http_url_mail_that_was_missed_is_recovered_and_marked() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        urls = ("--websocket-url", environment.websockets, "--http-url", environment.http + "/v0")
        async with running("listen", "--json", *urls) as process:
            # Begun when the process has read that it is subscribed: what came before that is not recovered.
            output = await read_until(process, b"\n")
            await fake.deliver(inbox_id=INBOX, subject="live")
            await fake.drop_connections()
            await fake.deliver(inbox_id=INBOX, subject="into the gap")
            output += await read_until(process, b'"caught_up"')
            while not output.endswith(b"\n"):
                output += await read_until(process, b"\n")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    events = [json.loads(line) for line in output.splitlines()]
    assert {event["message"]["subject"]: event["origin"] for event in events if event["type"] == "event"} == {
        "live": "live",
        "into the gap": "recovered",
    }
    assert (events[-1]["type"], events[-1]["recovered"]) == ("caught_up", 1)


async def test_with_a_journal_a_listener_that_was_down_tells_everything_once(tmp_path: Path) -> None:
    fake = FakeAgentMail()
    numbers = list(range(9))
    async with fake.serve() as environment:
        urls = ("--websocket-url", environment.websockets, "--http-url", environment.http)
        output = b""
        for begin, down in ((0, signal.SIGTERM), (3, signal.SIGKILL), (6, signal.SIGTERM)):
            async with running("listen", *urls, "--journal", str(tmp_path / "agent.db")) as process:
                output += await read_until(process, b"caught up" if begin else b"subscribed")
                await fake.deliver(inbox_id=INBOX, subject=f"number {begin}.")
                await fake.deliver(inbox_id=INBOX, subject=f"number {begin + 1}.")
                output += await read_until(process, f"number {begin + 1}.".encode())
                while read_journal(tmp_path / "agent.db")[0]:  # noqa: ASYNC110  its line is being acknowledged
                    await trio.sleep(0.01)
                process.send_signal(down)
                await process.wait()
                output += await read_rest(process.stdout)
                assert await read_rest(process.stderr) == b""
            await fake.wait_connected(0)
            await fake.deliver(inbox_id=INBOX, subject=f"number {begin + 2}.")
        async with running("listen", *urls, "--journal", str(tmp_path / "agent.db")) as process:
            output += await read_until(process, b"caught up")
            process.send_signal(signal.SIGTERM)
    assert sorted(map(int, re.findall(rb"number (\d+)", output))) == numbers
    recovered = re.findall(r"message\.received \(recovered\) .* number (\d+)", output.decode())
    assert sorted(map(int, recovered)) == [2, 5, 8]


async def test_hostile_mail_cannot_draw_on_the_terminal() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        async with running("listen", "--websocket-url", environment.websockets) as process:
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=HOSTILE, from_=HOSTILE, subject=HOSTILE)
            await fake.emit(ErrorEvent(name=HOSTILE, message=HOSTILE))
            await fake.send_raw(json.dumps({"type": "event", "event_type": HOSTILE}))
            await fake.drop_connections(1001, "\x1b[2J[red]\u202e")
            output = (await read_until(process, b"code 1001)\n")).decode()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    _, *lines = output.splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    # Markup is text, and so shown.
    assert lines[0].count("[red]r[/red]") == 3
    assert lines[0].count(":smile:") == 3


async def test_a_key_that_agentmail_does_not_know_is_one_line_without_the_key() -> None:
    fake = FakeAgentMail(api_keys=["am_another"])
    async with fake.serve() as environment:
        async with running("listen", "-v", "--websocket-url", environment.websockets) as process:
            errors = (await read_rest(process.stderr)).decode()
            assert await process.wait() == 1
            assert await read_rest(process.stdout) == b""
    *log, error = errors.splitlines()
    assert error.startswith("Error: AgentMail does not know this API key; check $AGENTMAIL_API_KEY")
    assert "Traceback" not in errors
    assert KEY not in errors
    assert all(re.match(r"\d\d:\d\d:\d\d INFO ", line) for line in log)


async def test_listen_ends_in_silence_when_nobody_reads_any_more() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        async with running("listen", "--websocket-url", environment.websockets) as process:
            await read_until(process, b"subscribed\n")
            assert process.stdout is not None
            await process.stdout.aclose()
            await fake.deliver(inbox_id=INBOX)
            assert await process.wait() == 0
            assert await read_rest(process.stderr) == b""
        await fake.wait_connected(0)
    assert fake.close_codes == [1000]


async def test_listen_can_be_stopped_while_its_reader_pauses() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        async with running("listen", "--json", "--websocket-url", environment.websockets) as process:
            await read_until(process, b"subscribed")
            for _ in range(20):
                await fake.deliver(inbox_id=INBOX, text="x" * 100_000)
            await trio.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert await read_rest(process.stderr) == b""


async def test_listen_can_be_stopped_before_it_is_connected() -> None:
    fake = FakeAgentMail()
    fake.hang_handshakes(None)
    async with fake.serve() as environment:
        async with running("listen", "--websocket-url", environment.websockets) as process:
            while not fake.handshakes:  # noqa: ASYNC110  the fake tells of open WebSockets only
                await trio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
            assert await read_rest(process.stderr) == b""


# As a process: `demo`


async def test_the_demo_keeps_its_promises_without_a_key_and_without_colours_in_a_pipe() -> None:
    async with running("demo", key="") as process:
        output = await read_rest(process.stdout)
        assert await process.wait() == 0
        assert await read_rest(process.stderr) == b""
    assert b"\x1b" not in output
    assert re.fullmatch(
        r"sent (\d+), delivered \1, recovered [1-9]\d*, lost 0, duplicated 0, reconnected 5: the promises held",
        output.decode().splitlines()[-1],
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_the_demo_can_be_interrupted_says_so_and_has_then_shown_nothing(signum: signal.Signals) -> None:
    async with running("demo") as process:
        await read_until(process, b"subscribed")
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        assert b"promises" not in await read_rest(process.stdout)
        assert (await read_rest(process.stderr)).decode() == (
            "interrupted before the end: nothing has been shown, neither good nor bad\n"
        )


# In this process: `listen`


async def listen_until(
    condition: Callable[[str], bool],
    capsys: pytest.CaptureFixture[str],
    fake: FakeAgentMail,
    *,
    signals: int = 1,
    as_json: bool = False,
    journal: SQLiteJournal | None = None,
) -> str:
    """Listen in memory until the output is as it should be, and stop by signals; return the output."""
    output = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                listen,
                Output(),
                Subscribe(),
                AgentMailEnvironment.PROD,
                as_json=as_json,
                journal=journal,
                backend=fake,
            )
        )
        while not condition(output):
            await trio.sleep(0.01)
            output += capsys.readouterr().out
        for _ in range(signals):
            signal.raise_signal(signal.SIGTERM)
            await trio.sleep(0.01)
    return output


@pytest.mark.parametrize("as_json", [False, True])
async def test_listen_prints_until_it_is_told_to_stop(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    fake = FakeAgentMail()
    output = await listen_until(lambda output: "subscribed" in output, capsys, fake, as_json=as_json)
    assert output.startswith("{") == as_json
    assert fake.close_codes == [1000]


async def test_what_has_been_printed_is_acknowledged_and_what_has_not_comes_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeAgentMail()
    path = tmp_path / "agent.db"
    print_line = Output.print

    async def pause_at_the_second(output: Output, line: Text) -> None:
        if "second" in line.plain:
            await trio.sleep_forever()
        await print_line(output, line)

    def has_first(output: str) -> bool:
        return "first" in output

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def deliver() -> None:
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, subject="first")
            await fake.deliver(inbox_id=INBOX, subject="second")

        with monkeypatch.context() as patched:
            patched.setattr(Output, "print", pause_at_the_second)
            await listen_until(has_first, capsys, fake, journal=SQLiteJournal(path))
    assert read_journal(path) == (1, [])
    output = await listen_until(lambda output: "second" in output, capsys, fake, journal=SQLiteJournal(path))
    assert "message.received (redelivered)" in output
    assert not has_first(output)
    assert read_journal(path) == (0, [])


async def test_a_second_signal_does_not_wait_for_the_goodbye(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()

    def is_subscribed(output: str) -> bool:
        if "subscribed" in output:
            fake.go_silent()
        return "subscribed" in output

    began = trio.current_time()
    await listen_until(is_subscribed, capsys, fake, signals=2)
    assert trio.current_time() - began < 4


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

    monkeypatch.setattr(_commands, "listen", fail)
    result = run("listen")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.isprintable()
    assert all(word in line for word in words)
    assert explain(failure) in line


def run(*arguments: str, key: str | None = KEY) -> Result:
    return CliRunner().invoke(commands, arguments, env={"AGENTMAIL_API_KEY": key})


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
        "ws://agentmail.example",  # would send the key in the clear
        "https://ws.agentmail.to",
        "nonsense",
        f"wss://ws.agentmail.to?api_key={KEY}",
        "ws://localhost:99999",
        "ws://[::1",
    ],
)
def test_a_url_that_is_not_safe_is_refused_with_status_2_and_not_repeated(url: str) -> None:
    result = run("listen", "--websocket-url", url)
    assert result.exit_code == 2
    assert "write wss://host" in result.stderr
    assert KEY not in result.stderr


def test_a_rest_api_elsewhere_has_a_url_that_is_safe_as_well() -> None:
    for url in ("http://agentmail.example", "wss://ws.agentmail.to", f"https://api.agentmail.to?api_key={KEY}"):
        result = run("listen", "--websocket-url", "ws://localhost:1", "--http-url", url)
        assert result.exit_code == 2
        assert "write https://host" in result.stderr
        assert KEY not in result.stderr


def test_a_rest_api_elsewhere_without_its_websocket_makes_no_sense() -> None:
    result = run("listen", "--http-url", "http://localhost:1")
    assert result.exit_code == 2
    assert "--http-url belongs to --websocket-url" in result.stderr


def test_a_journal_that_is_no_file_makes_no_sense() -> None:
    result = run("listen", "--journal", ":memory:")
    assert result.exit_code == 2
    assert "would keep nothing" in result.stderr


def test_a_journal_that_cannot_be_opened_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "aunt").write_bytes(b"a letter to my aunt " * 1000)
    result = run("listen", "--websocket-url", "ws://localhost:1", "--journal", str(tmp_path / "aunt"))
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: the journal ")


def test_two_servers_are_one_too_many() -> None:
    result = run("listen", "--environment", "eu", "--websocket-url", "ws://localhost:1")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_an_empty_filter_is_refused() -> None:
    result = run("listen", "--pod", "")
    assert result.exit_code == 2
    assert "pod_ids" in result.stderr


@pytest.mark.parametrize("inbox_id", ["", "not an inbox", "agent", "@agentmail.to", "a@b@c", "agent@agentmail.to\n"])
@pytest.mark.parametrize("command", ["listen", "emulate", "trigger message.received"])
def test_an_inbox_is_an_address(command: str, inbox_id: str) -> None:
    result = run(*command.split(), "--inbox", inbox_id)
    assert result.exit_code == 2
    assert "agent@agentmail.to" in result.stderr or "empty" in result.stderr
    assert "\n\n\n" not in result.stderr


def test_an_event_type_that_agentmail_does_not_have_is_a_warning_and_is_listened_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Subscribe] = []

    async def note(_output: Output, subscribe: Subscribe, *_: Any, **__: Any) -> None:
        asked.append(subscribe)

    monkeypatch.setattr(_commands, "listen", note)
    result = run("listen", "--event-type", "mesage.received", "--event-type", "message.sent")
    assert result.exit_code == 0
    assert result.stderr == ("Warning: unknown event type 'mesage.received'; did you mean 'message.received'?\n")
    assert asked[0].event_types == ("mesage.received", "message.sent")


def test_the_options_say_what_is_listened_to_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    async def note(
        _: Output, *arguments: Any, recovery: Recovery | None, journal: SQLiteJournal | None, as_json: bool
    ) -> None:
        calls.append((*arguments, recovery, repr(journal), as_json))

    monkeypatch.setattr(_commands, "listen", note)
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


async def test_each_attempt_that_fails_is_told_once_and_a_loss_is_not_told_again() -> None:
    fake = FakeAgentMail()
    fake.reject_handshakes(503, times=2)
    async with fake.serve() as environment:
        async with running("listen", "--websocket-url", environment.websockets) as process:
            output = await read_until(process, b"subscribed\n")
            fake.reject_handshakes(502)
            await fake.drop_connections()
            output += await read_until(process, b"subscribed\n")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            errors = (await read_rest(process.stderr)).decode()
    told = re.findall(r"^\d\d:\d\d:\d\d INFO waiting \d+\.\d s for the next attempt: .*HTTP status (\d+)", errors, re.M)
    assert told == ["503", "503", "502"]
    assert len(errors.splitlines()) == 3
    assert output.count(b"disconnected") == 1


@pytest.mark.parametrize(("options", "shown"), [([], ["trouble"]), (["-v"], ["subscribed", "trouble"])])
def test_trouble_is_always_logged_and_the_rest_on_request(
    monkeypatch: pytest.MonkeyPatch, options: list[str], shown: list[str]
) -> None:
    logger = logging.getLogger("trio_agentmail")

    async def log(*_: Any, **__: Any) -> None:
        logger.info("subscribed")
        logger.warning("trouble")

    monkeypatch.setattr(_commands, "listen", log)
    result = run("listen", *options)
    assert [line.split()[-1] for line in result.stderr.splitlines()] == shown
    assert not logger.handlers


# In this process: `demo`


async def test_the_demo_breaks_the_connection_in_many_ways_and_nothing_else_breaks(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    assert await _demo.perform(Output(), fake, AgentMailEnvironment.PROD, backend=fake)
    output = capsys.readouterr().out
    for code in (1001, 1006, 1009, 1012):
        assert f"(code {code})" in output
    assert "duplicates suppressed: 3" in output
    assert "overlapped, duplicates suppressed: 1" in output
    assert output.count("UnknownEvent: ") == 2
    assert output.count("CaughtUp: ") == 5
    assert re.search(r"message\.security\.review: mail \d+\n", output)
    assert re.search(r"asked again [12]\.\d+ s after the 429", output)
    assert "BROKEN" not in output
    assert "lost 0, duplicated 0, reconnected 5: the promises held" in output.splitlines()[-1]


async def test_the_demo_loses_mail_without_recovery_and_says_so(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scan_nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr("trio_agentmail._recovery.listing.MailListing.scan", scan_nothing)
    monkeypatch.setattr(_demo, "SWALLOWED", 1)
    fake = FakeAgentMail()
    assert not await _demo.perform(Output(), fake, AgentMailEnvironment.PROD, backend=fake)
    output = capsys.readouterr().out
    assert re.search(r"BROKEN +all mail that was sent was delivered", output)
    assert re.search(r"lost [1-9]\d*, .*: the promises did NOT hold", output.splitlines()[-1])


async def test_the_demo_notices_a_promise_that_does_not_hold(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._delivered.Delivered.claim", lambda *_: True)  # no de-duplication
    fake = FakeAgentMail()
    assert not await _demo.perform(Output(), fake, AgentMailEnvironment.PROD, backend=fake)
    output = capsys.readouterr().out
    assert re.search(r"BROKEN +nothing was delivered twice", output)
    assert output.endswith("the promises did NOT hold\n")


async def test_the_demo_does_not_wait_for_ever(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "TIME_LIMIT", 3.0)
    fake = FakeAgentMail()
    fake.hang_handshakes(None)
    assert not await _demo.perform(Output(), fake, AgentMailEnvironment.PROD, backend=fake)
    assert trio.current_time() < 4
    assert re.search(r"BROKEN +all of this within the time allowed", capsys.readouterr().out)


async def test_the_demo_is_served_on_a_loopback_port(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "TIME_LIMIT", 0.2)
    assert not await _demo.demo(Output())
    assert "ws://127.0.0.1:" in capsys.readouterr().out


async def test_a_demo_that_is_interrupted_has_shown_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def interrupt() -> None:
            await trio.sleep(0.2)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            await _demo.demo(Output())
    assert "promises" not in capsys.readouterr().out


@pytest.mark.parametrize(("held", "status"), [(True, 0), (False, 1)])
def test_the_status_of_the_demo_says_whether_the_promises_held(
    monkeypatch: pytest.MonkeyPatch, held: bool, status: int
) -> None:
    async def demo(_: Output) -> bool:
        return held

    monkeypatch.setattr(_commands, "demo", demo)
    assert run("demo").exit_code == status


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "--crash"]])
def test_a_demo_that_is_interrupted_is_neither_a_success_nor_a_broken_promise(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    async def demo(_: Output) -> bool:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(_commands, "demo", demo)
    monkeypatch.setattr(_commands, "crash_demo", demo)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.startswith("interrupted before the end")


def test_a_demo_that_nobody_watches_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def demo(_: Output) -> bool:
        raise OutputClosed

    monkeypatch.setattr(_commands, "demo", demo)
    result = run("demo")
    assert (result.exit_code, result.output) == (1, "")


def mail(number: int, origin: str = "live") -> MessageReceivedEvent:
    return MessageReceivedEvent(message=Message(inbox_id=INBOX, message_id=f"<{number}@demo.example>"), origin=origin)


GAP = (Disconnected(reason="cut", code=1006), Subscribed())
CLOSED = CaughtUp(since=NOON)
SEEN: list[Event] = [Subscribed(), mail(1), UnknownEvent(), *GAP, mail(3), mail(2, "recovered"), CLOSED]
GOOD = Record(
    sent={1: True, 2: False, 3: True, 4: False},
    # 4 was held; 3 was pushed, and a sweep was quicker.
    seen=[*SEEN, Subscribed(), mail(4, "recovered")],
    released={4: 6},
    broken_with=[1006],
    replacements=1,
    oddities=1,
    patient=[True, True],
    goodbye=1000,
    finished=True,
)


def test_the_verdict_on_a_run_that_went_well_is_that_it_did() -> None:
    assert all(kept for _, kept in judge(GOOD))
    assert GOOD.mended
    assert summary(GOOD, held=True) == (
        "sent 4, delivered 4, recovered 2, lost 0, duplicated 0, reconnected 1: the promises held"
    )


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"sent": {1: True, 2: False, 3: True}}, "what was delivered had been sent"),
        ({"sent": {**GOOD.sent, 5: True}}, "all mail that was sent was delivered"),
        ({"sent": {**GOOD.sent, 5: False}}, "all mail that was sent was delivered"),
        ({"seen": [*GOOD.seen, mail(3)]}, "nothing was delivered twice"),
        ({"seen": [*GOOD.seen, mail(3, "recovered")]}, "nothing was delivered twice"),
        ({"sent": {**GOOD.sent, 5: True, 6: True}, "seen": [*GOOD.seen, mail(6), mail(5)]}, "what a connection pushed"),
        ({"sent": {**GOOD.sent, 5: False}, "seen": [*GOOD.seen, mail(5)]}, "mail that was not pushed"),
        ({"released": {4: 10}}, "no mail came while it was held"),
        ({"broken_with": [1001]}, "each loss was reported once, with its code"),
        ({"seen": [*GOOD.seen, *GAP, CLOSED]}, "each loss was reported once, with its code"),
        ({"seen": [*GOOD.seen[:3], GAP[0], *GOOD.seen[5:7], GAP[1], *GOOD.seen[7:]]}, "after each loss"),
        ({"seen": [event for event in GOOD.seen if event is not CLOSED]}, "each gap was closed"),
        ({"replacements": 0}, "a new subscription took over"),
        ({"oddities": 2}, "what the server pushed and nobody knows"),
        ({"patient": [True, False]}, "each Retry-After was respected"),
        ({"patient": []}, "each Retry-After was respected"),
        ({"goodbye": None}, "left in peace"),
        ({"finished": False}, "all of this within the time allowed"),
    ],
)
def test_the_verdict_names_the_promise_that_did_not_hold(changes: dict[str, Any], broken: str) -> None:
    [promise] = [promise for promise, kept in judge(attrs.evolve(GOOD, **changes)) if not kept]
    assert promise.startswith(broken)


def test_a_loss_is_mended_when_it_is_over_and_the_gap_is_closed() -> None:
    assert not Record(broken_with=[1006]).mended
    assert not Record(broken_with=[1006], seen=[*GAP]).mended
    assert Record(broken_with=[1006], seen=[*GAP, CLOSED]).mended


def test_the_last_line_does_not_hide_mail_that_should_have_come() -> None:
    record = attrs.evolve(GOOD, sent={**GOOD.sent, 5: False})
    assert "lost 1, duplicated 0" in summary(record, held=False)
    assert summary(Record(), held=False) == (
        "sent 0, delivered 0, recovered 0, lost 0, duplicated 0, reconnected 0: the promises did NOT hold"
    )


def test_numbers_are_told_as_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([7]) == "7"
    assert ranges([3, 1, 2, 7, 9, 8]) == "1 to 3, 7 to 9"


# Events to lines


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Subscribed(), "subscribed"),
        (Subscribed(inbox_ids=("a", "b"), pod_ids=("p",)), "subscribed  a, b  p"),
        (Disconnected(reason="cut", code=1006), "disconnected  cut  (code 1006)"),
        (Disconnected(reason="cut"), "disconnected  cut  (code 1006)"),
        (CaughtUp(since=NOON, requests=1), "caught up  0 recovered  (since 2026-01-02 12:00:00+00:00)"),
        (
            CaughtUp(since=NOON.replace(microsecond=5), recovered=1, known=2, held=3, failed=4, requests=5),
            "caught up  1 recovered, 2 known, 3 held, 4 failed  (since 2026-01-02 12:00:00+00:00)",
        ),
        (
            RecoveryFailed(inbox_id="a", since=NOON, reason="status 500"),
            "recovery failed  a  status 500  (since 2026-01-02 12:00:00+00:00)",
        ),
        (
            RecoveryFailed(pod_id="p", since=NOON, reason="cut"),
            "recovery failed  p  cut  (since 2026-01-02 12:00:00+00:00)",
        ),
        (ErrorEvent(name="rate_limit", message="slow down"), "error  rate_limit  slow down"),
        (UnknownEvent(reason="its type is not known: x"), "unknown  its type is not known: x"),
        (
            MessageReceivedEvent(message=Message(inbox_id="a", message_id="m", from_="b", preview="Hi")),
            "message.received  a  b  Hi",
        ),
        (MessageSentEvent(send=Send(inbox_id="a", recipients=("b", "c"))), "message.sent  a  to b, c"),
        (MessageDeliveredEvent(delivery=Delivery(inbox_id="a", message_id="m")), "message.delivered  a  m"),
        (
            MessageBouncedEvent(
                bounce=Bounce(type="Permanent", recipients=(Recipient(address="b"), Recipient(address="c")))
            ),
            "message.bounced  to b, c  Permanent",
        ),
        (
            MessageComplainedEvent(complaint=Complaint(type="abuse", sub_type="x", recipients=("b",))),
            "message.complained  to b  abuse, x",
        ),
        (MessageRejectedEvent(reject=Reject(inbox_id="a", reason="virus")), "message.rejected  a  virus"),
        (MessageOpenedEvent(open=Open(inbox_id="a", message_id="m")), "message.opened  a  m"),
        (
            MessageSecurityCompletedEvent(
                message=MessageSecurity(inbox_id="a", agent_armor=AgentArmorResult(verdict="clear", reason="fine"))
            ),
            "message.security.completed  a  clear  fine",
        ),
        (MessageSecurityReviewEvent(message=MessageSecurity(message_id="m")), "message.security.review  m"),
        (
            MessageSecurityOverrideEvent(
                message=MessageSecurityOverride(inbox_id="a", manual_override=AgentArmorManualOverride(reason="known"))
            ),
            "message.security.override  a  known",
        ),
        (MessageSecurityOverrideEvent(message=MessageSecurityOverride(inbox_id="a")), "message.security.override  a"),
        (
            DomainVerifiedEvent(domain=Domain(domain="x.example", status="verified")),
            "domain.verified  x.example  VERIFIED",
        ),
        (
            CalendarEventStartingEvent(inbox_id="a", calendar_event=CalendarEvent(title="Lunch", start="12:00")),
            "calendar.event.starting  a  Lunch  12:00",
        ),
    ],
)
def test_a_line_says_what_an_event_is_about(event: Event, line: str) -> None:
    assert event_line(event, NOON).plain == f"12:00:00  {line}"


def test_what_was_not_pushed_is_marked() -> None:
    event = MessageReceivedEvent(message=Message(inbox_id="a", message_id="m", from_="b", subject="Hi"))
    for origin in ("recovered", "redelivered"):
        line = event_line(attrs.evolve(event, origin=origin), NOON).plain
        assert line == f"12:00:00  message.received ({origin})  a  b  Hi"
    unknown = event_json(UnknownEvent(reason="new", raw="null", origin="redelivered"))
    assert json.loads(unknown)["origin"] == "redelivered"


def test_a_long_piece_of_text_is_cut() -> None:
    line = event_line(ErrorEvent(name="x" * 5000), NOON).plain
    assert len(line) < 200
    assert line.endswith("…")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        # Today's spelling, whatever the server's; and what this package does not know stays.
        (
            '{"type": "message_sent", "send": {"inbox_id": "a"}, "new": 1}',
            {"type": "event", "event_type": "message.sent", "origin": "live", "send": {"inbox_id": "a"}, "new": 1},
        ),
        # Nor can anybody else say how it came.
        (
            '{"type": "message_sent", "send": {}, "origin": "recovered"}',
            {"type": "event", "event_type": "message.sent", "origin": "live", "send": {}},
        ),
        ('{"type": "error", "name": "x", "code": 7}', {"type": "error", "name": "x", "code": 7}),
        # Nobody else can say "disconnected".
        (
            '{"type": "disconnected"}',
            {
                "type": "unknown",
                "event_type": "disconnected",
                "event_id": None,
                "origin": "live",
                "reason": "its type is not known: disconnected",
                "payload": {"type": "disconnected"},
            },
        ),
        (
            '{"type": "caught_up", "event_type": "recovery_failed"}',
            {
                "type": "unknown",
                "event_type": "recovery_failed",
                "event_id": None,
                "origin": "live",
                "reason": "its type is not known: recovery_failed",
                "payload": {"type": "caught_up", "event_type": "recovery_failed"},
            },
        ),
        (
            "null",
            {
                "type": "unknown",
                "event_type": None,
                "event_id": None,
                "origin": "live",
                "reason": "JSON, but not an object",
                "raw": "null",
            },
        ),
        # Half a surrogate pair, as JavaScript cuts an emoji: strict parsers would refuse the line.
        (
            r'{"type": "error", "name": "\ud83d", "message": "\ud83d\ude00"}',
            {"type": "error", "name": "\ufffd", "message": "😀"},
        ),
    ],
)
def test_json_is_the_servers_own_object_under_a_type_that_can_be_trusted(frame: str, expected: object) -> None:
    line = event_json(decode_event(frame))
    assert json.loads(line) == expected
    assert line.isascii()
    assert line.isprintable()


def test_a_loss_is_an_object_of_our_own_in_json() -> None:
    assert json.loads(event_json(Disconnected(reason="cut"))) == {
        "type": "disconnected",
        "reason": "cut",
        "code": 1006,
        "last_received": None,
    }
    line = event_json(Disconnected(reason="\x7f", code=1006, last_received=NOON))
    assert line == (
        r'{"type":"disconnected","reason":"\u007f","code":1006,"last_received":"2026-01-02T12:00:00+00:00"}'
    )


def test_what_recovery_tells_is_an_object_of_our_own_in_json() -> None:
    assert event_json(CaughtUp(since=NOON, recovered=1, known=2, held=3, failed=4, requests=5)) == (
        '{"type":"caught_up","since":"2026-01-02T12:00:00+00:00",'
        '"recovered":1,"known":2,"held":3,"failed":4,"requests":5}'
    )
    assert json.loads(event_json(RecoveryFailed(since=NOON, reason="cut"))) == {
        "type": "recovery_failed",
        "inbox_id": None,
        "pod_id": None,
        "since": "2026-01-02T12:00:00+00:00",
        "reason": "cut",
    }
    line = event_json(RecoveryFailed(inbox_id=HOSTILE, pod_id=HOSTILE, since=NOON, reason=HOSTILE))
    assert re.fullmatch(r"[ -~]*", line)
    assert json.loads(line)["inbox_id"] == HOSTILE


def test_what_recovery_tells_cannot_draw_on_the_terminal() -> None:
    line = event_line(RecoveryFailed(inbox_id=HOSTILE, pod_id=HOSTILE, since=NOON, reason=HOSTILE), NOON).plain
    assert line.isprintable()
    assert line.count("[red]r[/red]") == 3


def test_what_may_be_missing_is_shown_in_another_colour_than_what_is_complete() -> None:
    styles = [
        event_line(event, NOON).spans[-1].style
        for event in (
            CaughtUp(since=NOON, recovered=1),
            CaughtUp(since=NOON, recovered=1, failed=1),
            RecoveryFailed(since=NOON, reason="cut"),
        )
    ]
    assert styles == ["green", "yellow", "bold red"]


def test_the_help_names_every_type_of_object() -> None:
    shown = run("listen", "--help").output
    for name in ("event", "subscribed", "error", "disconnected", "caught_up", "recovery_failed", "unknown"):
        assert f'"{name}"' in shown


@pytest.mark.parametrize(
    "event",
    [
        # Whether a thousand lists in each other are too many depends on Python's version.
        decode_event('{"type": "event", "event_type": "new", "event_id": "e", "x": ' + "[" * 1000 + "]" * 1000 + "}"),
        UnknownEvent(event_type="new", event_id="e", payload={"x": math.inf}, raw='{"x": Infinity}'),
    ],
)
def test_what_python_cannot_write_as_json_is_passed_on_as_text(event: UnknownEvent) -> None:
    written = event_json(event)
    assert written.startswith('{"type":"unknown","event_type":"new","event_id":"e","origin":"live","reason":"')
    assert '"raw":' in written or '"payload":' in written


@pytest.mark.parametrize(
    "text",
    [
        "語" * 1000,
        "aé" * 1000,
        "\U0001f600" * 1000,
        "\x7f" * 1000,
        "a line\r\n" * 1000,
        "\\" * 1000,
        "\\\x7f" * 1000,
        r"\ud83d" * 1000,
        '"\u2028\x9b\x00' * 1000,
    ],
)
def test_json_of_a_large_text_is_written_without_a_call_for_each_character(text: str) -> None:
    event = decode_event(encode_event(MessageReceivedEvent(message=Message(inbox_id="a", message_id="m", text=text))))
    line, calls = count_calls(partial(event_json, event))
    assert re.fullmatch(r"[ -~]*", line)
    assert json.loads(line)["message"]["text"] == text
    assert calls < 100


def test_halves_of_emojis_are_written_without_a_call_for_each_of_them() -> None:
    halves = UnknownEvent(payload={"x": "\ud83d \ude00 \U0001f600 \\ud83d" * 1000}, raw="null")
    line, calls = count_calls(partial(event_json, halves))
    assert json.loads(line)["payload"] == {"x": "\ufffd \ufffd \U0001f600 \\ud83d" * 1000}
    assert line.isascii()
    assert calls < 100


def test_a_line_about_many_recipients_looks_at_a_few() -> None:
    event = MessageSentEvent(send=Send(inbox_id="a", recipients=("bob@example.com",) * 100_000))
    line, calls = count_calls(lambda: event_line(event, NOON).plain)
    assert line.endswith("…")
    assert calls < 1000


def count_calls(function: Callable[[], str]) -> tuple[str, int]:
    """What a function returns, and how many calls of Python functions it took."""
    calls = 0

    def count(_frame: object, what: str, _argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        return function(), calls
    finally:
        sys.setprofile(before)


# Standard output


async def test_on_a_terminal_lines_are_coloured_and_a_long_one_cannot_pass_for_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        await Output().print(event_line(ErrorEvent(name="x" * 20, message="12:00:00 forged " * 3), NOON))
        shown = terminal.read(10_000).decode()
    assert "\x1b[1;31merror\x1b[0m" in shown
    first, *rest = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert first.startswith("12:00:00  error")
    assert rest
    assert all(row.startswith("    ") for row in rest)


async def test_output_can_go_to_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        output = Output()
        await output.print(Text("ü " + "x" * 1000))
    assert (tmp_path / "out").read_text() == "\\xfc " + "x" * 1000 + "\n"


async def test_output_into_a_pipe_that_nobody_reads_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        os.close(reader)
        with pytest.raises(OutputClosed):
            await Output().write("Hello")


async def test_output_waits_for_room_and_lets_other_tasks_run_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe, open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with trio.move_on_after(0.1) as scope:
            await Output().write("x" * 1_000_000)
        assert scope.cancelled_caught
        assert pipe.read(10) == b"x" * 10


async def test_a_large_text_is_handed_over_in_few_writes_and_comes_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Cutting what is left off a large text, again and again, took time in proportion to the square of its size.
    text = "many lines, zażółć, \U0001f600\n" * 100_000
    writes = 0
    write = os.write

    def count(fd: int, data: bytes) -> int:
        nonlocal writes
        writes += 1
        return write(fd, data)

    monkeypatch.setattr(os, "write", count)
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(reader) as pipe:
            nursery.start_soon(Output().write, text)
            received = b""
            while len(received) < len(text.encode()):
                received += bytes(await pipe.receive_some())
    assert received.decode() == text
    assert writes < 10


async def test_output_to_a_pipe_that_somebody_made_non_blocking_waits_for_room_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(reader) as pipe:
            nursery.start_soon(Output().write, "x" * 1_000_000)
            await wait_all_tasks_blocked(0.05)
            received = 0
            while received < 1_000_000:
                received += len(await pipe.receive_some())
    assert received == 1_000_000


async def test_a_terminal_that_has_been_paused_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        # A terminal makes two bytes of each line end, so that room for what is written is not enough.
        with trio.move_on_after(0.2) as scope:
            await Output().write("a line\n" * 100_000)
        assert scope.cancelled_caught
        assert terminal.read(8) == b"a line\r\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
async def test_a_full_disk_is_one_clear_line_and_status_1() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        with open("/dev/full", "wb") as full:
            process = await trio.run_process(
                [sys.executable, "-m", "trio_agentmail.cli", "listen", "--websocket-url", environment.websockets],
                env=environment_for(AGENTMAIL_API_KEY=KEY),
                stdout=full,
                capture_stderr=True,
                check=False,
            )
    assert process.returncode == 1
    [line] = process.stderr.decode().splitlines()
    assert line.startswith("Error: ")
    assert "No space left on device" in line


def test_no_signal_is_named_that_windows_does_not_have() -> None:
    sources = Path(trio_agentmail.__file__).parent.rglob("*.py")
    named = {name for source in sources for name in re.findall(r"\bsignal\.(SIG\w+)", source.read_text("utf-8"))}
    assert named <= {"SIGINT", "SIGTERM"}


# Help and completion


def every_command(command: click.Command = commands, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from every_command(below, *path, name)


COMMANDS = [path for path, _ in every_command()]


@pytest.mark.parametrize("width", ["80", "50"])
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_help_text_is_cut(path: tuple[str, ...], width: str) -> None:
    result = CliRunner().invoke(commands, [*path, "--help"], env={"COLUMNS": width})
    assert result.exit_code == 0
    # `[OPTIONS] COMMAND [ARGS]...` is no text.
    assert "..." not in result.stdout.replace("]...", "")
    shown = " ".join(result.stdout.split())
    command = dict(every_command())[path]
    for below in getattr(command, "commands", {}).values():
        [sentence] = re.findall(r"^.*?(?:\.(?= |$)|$)", " ".join(below.help.split("\n\n")[0].split()))
        assert sentence.rstrip(".") in shown


def completed(*words: str) -> list[str]:
    """What a shell offers for the last of some words."""
    *before, last = words
    completion = ShellComplete(commands, {}, "trio-agentmail", "_TRIO_AGENTMAIL_COMPLETE")
    return [item.value for item in completion.get_completions(before, last)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lis"], ["listen"]),
        (["listen", "--event-type", "message.b"], ["message.bounced"]),
        (["listen", "--event-type", ""], [*get_args(EventType)]),
        (
            ["trigger", "message.received."],
            [f"message.received.{kind}" for kind in ("spam", "blocked", "unauthenticated")],
        ),
        (["fault", "re"], ["refuse", "reject", "reorder", "rest-break", "rest-error", "rest-hang"]),
        (["fault", "chaos", "--faults", "dela"], ["delay"]),
        (["fault", "chaos", "--faults", "cut,re"], ["cut,refuse", "cut,reject", "cut,reorder"]),
        (["fault", "chaos", "--faults", "cut,cu"], []),
        (["journal", ""], ["drop", "list", "requeue", "show"]),
    ],
)
def test_a_shell_can_complete(words: list[str], expected: list[str]) -> None:
    assert sorted(completed(*words)) == sorted(expected)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    async with running("--version", _TRIO_AGENTMAIL_COMPLETE=f"{shell}_source") as process:
        script = (await read_rest(process.stdout)).decode()
        assert await process.wait() == 0
    assert f"_TRIO_AGENTMAIL_COMPLETE={shell}_complete" in script
    assert "trio-agentmail" in script


# The entry point


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("trio_agentmail.cli._", module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=r"pip install 'trio-agentmail\[cli\]'"):
        cli.main()


def test_a_module_of_our_own_that_is_missing_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_agentmail.cli._commands", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_the_package_can_be_run_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trio-agentmail", "--version"])
    with pytest.raises(SystemExit) as caught:
        run_as_main("trio_agentmail.cli.__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("trio-agentmail, version ")


async def test_each_signal_stops_a_little_more(autojump_clock: MockClock) -> None:
    cancelled = []
    async with stop_signals() as scopes:
        with trio.CancelScope() as reading, trio.CancelScope(shield=True):
            scopes.append(reading)
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                await wait_all_tasks_blocked()
                cancelled.append((reading.cancel_called, len(scopes)))
    assert cancelled == [(True, 1), (True, 0)]
