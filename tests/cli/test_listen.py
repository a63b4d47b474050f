"""`trio-agentmail listen`: what it prints, how it ends, and that no mail can control the terminal."""

import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import trio
from rich.text import Text
from trio.testing import MockClock

from tests.helpers.commands import HOSTILE, INBOX, KEY, read_rest, read_until, running
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._journal.sqlite_store import read_journal
from trio_agentmail._settings import AgentMailEnvironment, Subscribe
from trio_agentmail.cli._listen import listen
from trio_agentmail.cli._output import Output
from trio_agentmail.events import (
    ErrorEvent,
)
from trio_agentmail.testing import FakeAgentMail, encode_event

# As a process


@asynccontextmanager
async def listening(fake: FakeAgentMail, *options: str) -> AsyncIterator[trio.Process]:
    """Serve the fake, and run `listen` against it, without the REST API."""
    async with fake.serve() as environment:
        async with running("listen", "--websocket-url", environment.websockets, *options) as process:
            yield process


async def test_a_large_event_is_written_completely_and_does_not_block_the_event_loop() -> None:
    fake = FakeAgentMail()
    text = "zażółć gęślą jaźń, \U0001f600\n" * 40_000
    async with listening(fake, "--json") as process:
        await fake.wait_subscribed()
        await fake.deliver(inbox_id=INBOX, text=text)
        # The pipe is full, since this test does not read yet. The process reconnects all the same.
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
async def test_each_event_is_a_line_and_a_signal_closes_the_connection_politely(signum: signal.Signals) -> None:
    fake = FakeAgentMail(api_keys=[KEY])
    async with listening(fake, "--inbox", INBOX, "--event-type", "message.received") as process:
        await fake.wait_subscribed()
        await fake.deliver(inbox_id=INBOX, from_="Jane <jane@example.com>", subject="Zażółć gęślą jaźń")
        await fake.deliver(inbox_id="somebody@else.example", subject="not ours")
        await fake.deliver(inbox_id=INBOX, subject="the last")
        output = await read_until(process, b"the last\n")
        process.send_signal(signum)
        assert await process.wait() == 0
        assert await read_rest(process.stderr) == b""
        await fake.wait_connected(0)
    assert fake.record.close_codes == [1000]
    assert fake.record.subscriptions == [Subscribe(inbox_ids=[INBOX], event_types=["message.received"])]
    first, second, third = (line[8:] for line in output.decode().splitlines())
    assert first == f"  subscribed  {INBOX}  message.received"
    assert second == f"  message.received  {INBOX}  Jane <jane@example.com>  Zażółć gęślą jaźń"
    assert third.endswith("the last")
    assert b"\x1b" not in output


async def test_with_json_each_line_is_an_object() -> None:
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


async def test_without_http_url_the_key_goes_to_the_websocket_server_only() -> None:
    fake = FakeAgentMail()
    async with listening(fake, "-v") as process:
        await fake.wait_subscribed()
        await fake.drop_connections()
        await fake.deliver(inbox_id=INBOX, subject="into the gap")
        await fake.wait_subscribed()
        await fake.deliver(inbox_id=INBOX, subject="the last")
        output = await read_until(process, b"the last\n")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        # Recovery would have sent a request at once, and would have logged its failure.
        assert b"recover" not in await read_rest(process.stderr)
    assert b"into the gap" not in output
    assert b"caught up" not in output
    assert not fake.record.requests


async def test_with_http_url_missed_mail_is_recovered_and_marked() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        urls = ("--websocket-url", environment.websockets, "--http-url", environment.http + "/v0")
        async with running("listen", "--json", *urls) as process:
            # Mail from before the confirmation is not recovered, so wait until the process has read that.
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


async def test_with_a_journal_everything_is_printed_once_across_restarts(tmp_path: Path) -> None:
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
                while read_journal(tmp_path / "agent.db")[0]:  # noqa: ASYNC110  the event is about to be acknowledged
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


async def test_hostile_mail_cannot_control_the_terminal() -> None:
    fake = FakeAgentMail()
    async with listening(fake) as process:
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
    # Rich markup is shown as text.
    assert lines[0].count("[red]r[/red]") == 3
    assert lines[0].count(":smile:") == 3


async def test_an_unknown_key_is_one_line_without_the_key() -> None:
    fake = FakeAgentMail(api_keys=["am_another"])
    async with listening(fake, "-v") as process:
        errors = (await read_rest(process.stderr)).decode()
        assert await process.wait() == 1
        assert await read_rest(process.stdout) == b""
    *log, error = errors.splitlines()
    assert error.startswith("Error: AgentMail does not know this API key; check $AGENTMAIL_API_KEY")
    assert "Traceback" not in errors
    assert KEY not in errors
    assert all(re.match(r"\d\d:\d\d:\d\d INFO ", line) for line in log)


async def test_it_ends_silently_when_the_reader_of_its_output_has_gone() -> None:
    fake = FakeAgentMail()
    async with listening(fake) as process:
        await read_until(process, b"subscribed\n")
        assert process.stdout is not None
        await process.stdout.aclose()
        await fake.deliver(inbox_id=INBOX)
        assert await process.wait() == 0
        assert await read_rest(process.stderr) == b""
        await fake.wait_connected(0)
    assert fake.record.close_codes == [1000]


async def test_it_can_be_stopped_while_its_reader_pauses() -> None:
    fake = FakeAgentMail()
    async with listening(fake, "--json") as process:
        await read_until(process, b"subscribed")
        for _ in range(20):
            await fake.deliver(inbox_id=INBOX, text="x" * 100_000)
        await trio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await read_rest(process.stderr) == b""


async def test_it_can_be_stopped_before_it_is_connected() -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes(None)
    async with listening(fake) as process:
        while not fake.record.handshakes:  # noqa: ASYNC110  the fake only announces WebSockets that are open
            await trio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        assert await read_rest(process.stderr) == b""


# In this process


async def listen_until(
    condition: Callable[[str], bool],
    capsys: pytest.CaptureFixture[str],
    fake: FakeAgentMail,
    *,
    signals: int = 1,
    as_json: bool = False,
    journal: SQLiteJournal | None = None,
) -> str:
    """Listen in memory until the condition on the output is true, stop by signals, and return the output."""
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
async def test_it_prints_until_a_signal_comes(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    fake = FakeAgentMail()
    output = await listen_until(lambda output: "subscribed" in output, capsys, fake, as_json=as_json)
    assert output.startswith("{") == as_json
    assert fake.record.close_codes == [1000]


async def test_only_printed_events_are_acknowledged(
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


async def test_a_second_signal_does_not_wait_for_the_closing_handshake(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()

    def is_subscribed(output: str) -> bool:
        if "subscribed" in output:
            fake.faults.silence_connections()
        return "subscribed" in output

    began = trio.current_time()
    await listen_until(is_subscribed, capsys, fake, signals=2)
    assert trio.current_time() - began < 4


async def test_each_failed_attempt_is_logged_once_and_a_loss_only_printed() -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, times=2)
    async with listening(fake) as process:
        output = await read_until(process, b"subscribed\n")
        fake.faults.reject_handshakes(502)
        await fake.drop_connections()
        output += await read_until(process, b"subscribed\n")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        errors = (await read_rest(process.stderr)).decode()
    told = re.findall(r"^\d\d:\d\d:\d\d INFO waiting \d+\.\d s for the next attempt: .*HTTP status (\d+)", errors, re.M)
    assert told == ["503", "503", "502"]
    assert len(errors.splitlines()) == 3
    assert output.count(b"disconnected") == 1
