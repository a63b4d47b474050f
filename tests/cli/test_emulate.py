"""The commands `emulate`, `trigger`, `fault` and `reset`, as processes and in this one."""

import base64
import gc
import json
import re
import signal
import socket
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import httpx2
import pytest
import trio
from click.testing import CliRunner, Result
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.commands import read_rest, read_until, running
from tests.helpers.streams import open_agentmail_stream
from tests.helpers.time_outs import ENTER_TIMEOUT, OPEN_TIMEOUT, failure_to_enter, pass_time
from trio_agentmail import (
    AgentMailEnvironment,
    AuthenticationError,
    Disconnected,
    Event,
    MessageDeliveredEvent,
    MessageReceivedEvent,
    MessageSecurityCompletedEvent,
    MessageSecurityReviewEvent,
    ReconnectPolicy,
    Subscribe,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.cli import _emulate
from trio_agentmail.cli._commands import commands
from trio_agentmail.cli._fault import fault_commands
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.testing._agentmail.agentmail import AgentMail
from trio_agentmail.testing._agentmail.mail.store import MailStore
from trio_agentmail.testing._emulator.emulator import MAX_REMEMBERED, Emulator
from trio_agentmail.testing._emulator.faults import REMOTE_FAULTS
from trio_agentmail.testing._emulator.server import respond, serve
from trio_agentmail.testing._emulator.trigger import EVENT_TYPES
from trio_agentmail.testing._faults.table import CHAOS
from trio_agentmail.testing._wire.http_server import HttpConnection
from trio_agentmail.testing._wire.transport import FakeTransport

INBOX = "agent@agentmail.to"
KEY = "am_key"
ANY_PORTS = ("--http-port", "0", "--websocket-port", "0")
HOSTILE = "\x1b[2J[red]r[/red]\u202e\r\nforged"

EML = b"""\
From: Jane <jane@example.com>
To: Agent <agent@agentmail.to>
Subject: =?utf-8?q?Za=C5=BC=C3=B3=C5=82=C4=87?=
Message-ID: <eml@example.com>

A whole mail.
"""


@asynccontextmanager
async def emulator_process(*arguments: str) -> AsyncIterator[tuple[trio.Process, AgentMailEnvironment]]:
    """An emulator in a process of its own, which is told to end at the end of the block."""
    async with running("emulate", "--json", *ANY_PORTS, *arguments) as process:
        where = json.loads(await read_until(process, b"\n"))
        yield process, AgentMailEnvironment(**where)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await read_rest(process.stdout) == b""
        assert await read_rest(process.stderr) == b""


@attrs.define
class Served:
    """An emulator in this process, on ports, and the lines that it prints."""

    emulator: Emulator
    environment: AgentMailEnvironment
    told: list[str]

    async def command(self, *arguments: str) -> Result:
        """Run a command in a thread, since the command waits for the emulator in this one."""
        url = ("--emulator", self.environment.http)
        return await trio.to_thread.run_sync(partial(run, *arguments, *url))

    async def ok(self, *arguments: str) -> str:
        result = await self.command(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=self.environment.http) as client:
            return await client.post(f"/_emulator/{path}", json=body, headers=headers)


@asynccontextmanager
async def serving(**arguments: Any) -> AsyncIterator[Served]:
    told: list[str] = []
    emulator = Emulator(told.append, **arguments)
    with trio.fail_after(20):
        async with serve(emulator) as environment:
            yield Served(emulator, environment, told)


def run(*arguments: str, **variables: str | None) -> Result:
    return CliRunner().invoke(commands, arguments, env={"AGENTMAIL_EMULATOR": None, **variables})


listening = partial(
    open_agentmail_stream, api_key=KEY, reconnect=ReconnectPolicy(initial_delay=0.01, max_delay=0.05), open_timeout=2.0
)


async def next_mail(events: trio.MemoryReceiveChannel[Event]) -> MessageReceivedEvent:
    async for event in events:
        if isinstance(event, MessageReceivedEvent):
            return event
    raise AssertionError("the stream has ended")


# In processes of their own


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_line_of_json_says_where_it_is_and_a_signal_ends_it(signum: signal.Signals) -> None:
    async with running("emulate", "--json", *ANY_PORTS) as process:
        line = await read_until(process, b"\n")
        assert re.fullmatch(rb'\{"http": "http://127\.0\.0\.1:\d+", "websockets": "ws://127\.0\.0\.1:\d+"\}\n', line), (
            line
        )
        async with listening(environment=AgentMailEnvironment(**json.loads(line))) as events:
            assert isinstance(await events.receive(), Subscribed)
            process.send_signal(signum)
            assert await process.wait() == 0
            assert isinstance(await events.receive(), Disconnected)
        assert await read_rest(process.stdout) == b""
        assert await read_rest(process.stderr) == b""


async def test_mail_that_is_triggered_comes_out_of_a_stream_and_is_listed() -> None:
    async with emulator_process("--api-key", KEY, "--inbox", f"{INBOX}=support", "--pod", "empty") as (_, environment):
        async with listening(Subscribe(inbox_ids=[INBOX]), environment=environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            async with running(
                *("trigger", "message.received", "--inbox", INBOX, "--from", "bob@example.com"),
                *("--subject", "Hi", "--text", "Hello!", "--emulator", environment.http),
            ) as trigger:
                printed = (await read_rest(trigger.stdout)).decode()
                assert await trigger.wait() == 0
                assert await read_rest(trigger.stderr) == b""
            event = await events.receive()
            assert isinstance(event, MessageReceivedEvent)
        message = event.message
        assert (message.from_, message.subject, message.text) == ("bob@example.com", "Hi", "Hello!")
        assert printed == (
            f"message.received  event_id={event.event_id}  message_id={message.message_id}  pushed to 1\n"
        )
        async with httpx2.AsyncClient(
            base_url=f"{environment.http}/v0", headers={"Authorization": f"Bearer {KEY}"}
        ) as client:
            [listed] = (await client.get(f"/inboxes/{INBOX}/messages")).json()["messages"]
            assert listed["message_id"] == message.message_id
            [inbox] = (await client.get("/pods/support/inboxes")).json()["inboxes"]
            assert inbox["inbox_id"] == INBOX
            assert (await client.get("/pods/empty/inboxes")).json()["inboxes"] == []
        with pytest.raises(AuthenticationError):
            async with listening(environment=environment, api_key="am_another"):
                pass


async def test_it_says_what_to_set_and_then_a_line_for_each_thing_that_happens() -> None:
    async with running("emulate", *ANY_PORTS, "--api-key", KEY) as process:
        greeting = (await read_until(process, b"Ctrl-C ends it.\n\n")).decode()
        [http] = re.findall(r"REST API +(http://\S+)", greeting)
        [websockets] = re.findall(r"WebSocket +(ws://\S+)", greeting)
        assert f'open_agentmail_stream(api_key="{KEY}", environment=' in greeting
        assert f'AgentMailEnvironment(http="{http}", websockets="{websockets}")' in greeting
        assert f'environment: {{ http: "{http}", websockets: "{websockets}" }}' in greeting
        assert f"export AGENTMAIL_EMULATOR={http}\n" in greeting
        environment = AgentMailEnvironment(http=http, websockets=websockets)
        with pytest.raises(AuthenticationError):
            async with listening(environment=environment, api_key="am_another"):
                pass
        async with listening(Subscribe(inbox_ids=[INBOX]), environment=environment) as events:
            async with httpx2.AsyncClient(base_url=http) as client:
                await client.get("/v0/inboxes", params={"limit": "1"})
                command = {"event_type": "message.received", "inbox_id": INBOX, "subject": HOSTILE}
                await client.post("/_emulator/trigger", json=command)
                await next_mail(events)
        output = await read_until(process, b"closed by the client with 1000\n")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        output += await read_rest(process.stdout)
    lines = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in output.decode().splitlines()]
    lines.remove("connection 1: ended before the handshake was complete")  # it may take a while to be noticed
    assert lines[:3] == [
        "connection 1: the handshake is answered with 401",
        "connection 2: open",
        f'connection 2: {{"type":"subscribed","inbox_ids":["{INBOX}"]}}',
    ]
    assert lines[3].startswith('GET /v0/inboxes: 401 {"name":')
    assert re.fullmatch(rf"message.received in {INBOX} '.*forged' from .*: pushed to connection 2", lines[4])
    assert lines[4].isprintable()
    assert lines[5:] == ["connection 2: closed by the client with 1000"]


@pytest.mark.parametrize("option", ["--http-port", "--websocket-port"])
async def test_a_port_in_use_is_one_clear_line_and_status_1(option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with running("emulate", "--json", *ANY_PORTS, option, port) as process:
            errors = (await read_rest(process.stderr)).decode()
            assert await process.wait() == 1
            assert await read_rest(process.stdout) == b""
    [line] = errors.splitlines()
    assert line.startswith(f"Error: cannot listen on port {port} of 127.0.0.1: ")
    assert option in line


async def test_the_emulator_ends_in_silence_when_nobody_reads_what_it_tells() -> None:
    async with running("emulate", *ANY_PORTS) as process:
        greeting = (await read_until(process, b"Ctrl-C ends it.\n\n")).decode()
        [http] = re.findall(r"REST API +(http://\S+)", greeting)
        assert process.stdout is not None
        await process.stdout.aclose()
        async with httpx2.AsyncClient() as client:
            await client.get(f"{http}/v0/inboxes")
        assert await process.wait() == 0
        assert await read_rest(process.stderr) == b""


# `emulate`, in this process


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def emulate_until_told_to_stop(
    capsys: pytest.CaptureFixture[str], log: _emulate.Log | None, host: str = "127.0.0.1"
) -> str:
    emulator = Emulator(_emulate.silence if log is None else log.tell)
    output = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_emulate.emulate, Output(), emulator, log, host, 0, 0)
        with trio.fail_after(10):
            while not output.endswith("\n"):
                await trio.sleep(0.01)
                output += capsys.readouterr().out
        signal.raise_signal(signal.SIGTERM)
    return output


async def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output = await emulate_until_told_to_stop(capsys, None)
    assert set(json.loads(output)) == {"http", "websockets"}


async def test_on_all_addresses_it_says_what_that_means_and_where_it_is_from_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = await emulate_until_told_to_stop(capsys, _emulate.Log(), host="0.0.0.0")
    assert "Anyone who can reach this machine can read and send" in output
    assert "http://127.0.0.1:" in output


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_is_written_as_urls_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    output = await emulate_until_told_to_stop(capsys, None, host="::1")
    assert json.loads(output)["http"].startswith("http://[::1]:")


async def print_what_waits(log: _emulate.Log) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.print_to, Output())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_terminal_that_pauses_costs_lines_and_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    log = _emulate.Log()
    for number in range(_emulate.MAX_WAITING + 5):
        log.tell(str(number))
    await print_what_waits(log)
    log.tell(HOSTILE)
    await print_what_waits(log)
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before.endswith(f"  {_emulate.MAX_WAITING - 1}")
    assert "(5 lines before this one were dropped)" in last
    assert last.isprintable()


def options_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, ...]:
    calls: list[tuple[Any, ...]] = []

    async def note(_: Output, *arguments: Any) -> None:
        calls.append(arguments)

    monkeypatch.setattr(_emulate, "emulate", note)
    result = run("emulate", *arguments)
    assert result.exit_code == 0, result.output
    return calls[0]


def test_its_ports_are_always_the_same_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator, log, *where = options_of(monkeypatch)
    assert where == ["127.0.0.1", 8490, 8491, ()]
    assert _emulate.DEFAULT_EMULATOR == "http://127.0.0.1:8490"
    assert emulator.fake.api_keys is None
    assert log is not None
    greeting = _emulate.greeting(
        AgentMailEnvironment(http="http://127.0.0.1:8490", websockets="ws://127.0.0.1:8491"), (), is_open=False
    )
    assert "AGENTMAIL_EMULATOR" not in greeting
    assert "Anyone" not in greeting
    assert "API key    any" in greeting


def test_the_options_say_where_it_listens_and_what_there_is_to_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator, log, *where = options_of(
        monkeypatch,
        "--json",
        "--host",
        "localhost",
        "--http-port",
        "1",
        "--api-key",
        "a=",
        "--api-key",
        "b",
        "--permission",
        "inbox_read",
        "--allow-host",
        "agentmail",
        "--allow-host",
        "10.0.0.1",
    )
    assert emulator.fake.permissions == ("inbox_read",)
    assert (emulator.fake.api_keys, log, where) == (
        ("a=", "b"),
        None,
        ["127.0.0.1", 1, 8491, ("agentmail", "10.0.0.1")],
    )


def test_inboxes_and_pods_are_there_to_begin_with_and_json_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator, *_ = options_of(
        monkeypatch, "--json", "--inbox", INBOX, "--inbox", "b@x=sales", "--pod", "empty", "--pod", "sales"
    )

    async def inboxes_by_pod_after_a_reset() -> dict[str, list[str]]:
        assert await inboxes_by_pod() == {"default": [INBOX], "sales": ["b@x"], "empty": []}
        emulator.fake.mail.add_inbox(INBOX, pod_id="empty")
        emulator.fake.mail.add_inbox("another@x")
        await emulator.reset()
        return await inboxes_by_pod()

    async def inboxes_by_pod() -> dict[str, list[str]]:
        found = {}
        async with httpx2.AsyncClient(
            transport=emulator.fake.http_transport(), base_url="http://x/v0", headers={"Authorization": "Bearer x"}
        ) as client:
            for pod in ("default", "sales", "empty"):
                inboxes = (await client.get(f"/pods/{pod}/inboxes")).json()["inboxes"]
                found[pod] = [inbox["inbox_id"] for inbox in inboxes]
        return found

    assert trio.run(inboxes_by_pod_after_a_reset) == {"default": [INBOX], "sales": ["b@x"], "empty": []}


def test_a_host_is_an_ip_address() -> None:
    result = run("emulate", "--host", "example.com")
    assert result.exit_code == 2
    assert "write an IP address" in result.stderr


@pytest.mark.parametrize("name", ["agentmail:8490", "http://agentmail", ""])
def test_a_host_is_allowed_by_its_name_alone(name: str) -> None:
    result = run("emulate", "--allow-host", name)
    assert result.exit_code == 2
    assert "without a port" in " ".join(result.stderr.split())


@pytest.mark.parametrize("option", ["--inbox", "--pod", "--api-key", "--permission"])
def test_an_empty_name_is_refused(option: str) -> None:
    result = run("emulate", option, "")
    assert result.exit_code == 2
    assert "empty" in result.stderr


def test_a_permission_that_agentmail_does_not_have_is_refused() -> None:
    result = run("emulate", "--permission", "message_read", "--permission", "mesage_read")
    assert result.exit_code == 2
    assert "AgentMail has no permission mesage_read; it has inbox_read, " in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("failure", "status", "shown"),
    [(OutputClosed(), 0, ""), (OSError(98, HOSTILE), 1, "forged"), (OSError("no ports"), 1, "no ports")],
)
def test_how_it_ends_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int, shown: str
) -> None:
    async def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(_emulate, "emulate", fail)
    result = run("emulate")
    assert result.exit_code == status
    assert shown in result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())


# `trigger`


@pytest.mark.parametrize("event_type", EVENT_TYPES)
async def test_every_event_type_can_be_triggered(event_type: str) -> None:
    async with serving() as served:
        held = await served.emulator.fake.deliver(inbox_id=INBOX, held=True)
        more = ["--message-id", held.message.message_id] if event_type == "message.security.override" else []
        async with listening(Subscribe(event_types=[event_type]), environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            printed = await served.ok("trigger", event_type, "--inbox", INBOX, *more)
            event = await events.receive()
        assert getattr(event, "event_type", None) == event_type
        assert printed.startswith(f"{event_type}  ")
        assert printed.endswith("  pushed to 1\n")


async def test_what_happens_to_a_sent_mail_is_told_of_that_mail() -> None:
    async with serving() as served:
        sent = await served.emulator.fake.mail.send(inbox_id=INBOX, to=["bob@example.com"])
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            about = ("--inbox", INBOX, "--message-id", sent.send.message_id or "")
            await served.ok("trigger", "message.delivered", *about)
            await served.ok("trigger", "message.delivered", *about, "--to", "eve@example.com", "--thread-id", "t")
            await served.ok("trigger", "message.security.completed", *about)
            delivered, another = [(await events.receive()).delivery for _ in range(2)]  # type: ignore[union-attr]
            checked = await events.receive()
        assert isinstance(checked, MessageSecurityCompletedEvent)
        assert checked.message.message_id == sent.send.message_id
        assert (delivered.message_id, delivered.thread_id) == (sent.send.message_id, sent.send.thread_id)
        assert delivered.recipients == ("bob@example.com",)
        assert (another.recipients, another.thread_id) == (("eve@example.com",), "t")


async def test_a_whole_mail_comes_to_whom_it_is_addressed(tmp_path: Path) -> None:
    path = tmp_path / "mail.eml"
    path.write_bytes(EML)
    async with serving() as served:
        served.emulator.fake.mail.add_inbox(INBOX)
        async with listening(environment=served.environment) as events:
            printed = await served.ok("trigger", "message.received", "--eml", str(path))
            event = await next_mail(events)
            assert "message_id=<eml@example.com>" in printed
            assert (event.message.inbox_id, event.message.subject) == (INBOX, "Zażółć")
            await served.ok("trigger", "message.security.review", "--eml", str(path), "--inbox", "another@agentmail.to")
            held = await events.receive()
        assert isinstance(held, MessageSecurityReviewEvent)
        assert held.message.inbox_id == "another@agentmail.to"


async def test_a_mail_comes_with_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"Hello")
    (tmp_path / "b").write_bytes(b"\x00")
    files = ("--attachments", str(tmp_path / "a.txt"), "--attachments", str(tmp_path / "b"))
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        await served.ok("trigger", "message.received", "--inbox", INBOX, "--message-id", "1", *files)
        await served.ok("trigger", "message.sent", "--inbox", INBOX, *files)
        for message in served.emulator.fake.mail.messages(INBOX):
            assert [(one.filename, one.content_type) for one in message.attachments] == [
                ("a.txt", "text/plain"),
                ("b", "application/octet-stream"),
            ]
        first = served.emulator.fake.mail.messages(INBOX, "received")[0].attachments[0].attachment_id
        headers = {"Authorization": f"Bearer {KEY}"}
        where = await client.get(f"/v0/inboxes/{INBOX}/messages/1/attachments/{first}", headers=headers)
        assert (await client.get(where.json()["download_url"])).content == b"Hello"


async def test_a_push_to_no_connection_is_reported_on_standard_error() -> None:
    async with serving() as served:
        result = await served.command("trigger", "message.received", "--inbox", INBOX, "--from", "bob@example.com")
    assert result.exit_code == 0
    assert result.stdout.endswith("pushed to 0\n")
    assert result.stderr.startswith("no connection received it")


def test_an_event_type_that_is_not_known_lists_those_that_are() -> None:
    result = run("trigger", "explosion")
    assert result.exit_code == 2
    assert all(event_type in result.stderr for event_type in EVENT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["message.received"], "message.received needs an inbox_id"),
        (
            ["message.opened", "--inbox", INBOX, "--subject", "x"],
            "message.opened takes inbox_id, message_id, thread_id",
        ),
        (["message.security.override", "--inbox", INBOX], "needs the message_id of a held mail"),
        (["message.security.override", "--inbox", INBOX, "--message-id", "<no>"], "there is no mail <no>"),
        (["message.security.override", "--inbox", INBOX, "--message-id", "<1>"], "is not held"),
        (["message.received", "--inbox", "other@x", "--thread-id", "t"], "the thread t is in the inbox"),
        (["message.received", "--eml", __file__], "the mail is addressed to nobody"),
        (["message.received", "--eml", __file__, "--subject", "x"], "only inbox_id can be given"),
    ],
)
async def test_an_invalid_trigger_is_refused_in_one_line(arguments: list[str], words: str) -> None:
    async with serving() as served:
        await served.emulator.fake.deliver(inbox_id=INBOX, message_id="<1>", thread_id="t")
        result = await served.command("trigger", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the emulator refused: ")
    assert words in result.stderr


# `fault`


async def test_faults_of_open_websockets_strike_at_once(adjustable_clock: MockClock) -> None:
    async with serving() as served:
        async with listening(environment=served.environment, ping_interval=1.0, ping_timeout=4.0) as events:
            codes = []
            for arguments in (
                ["drop_connections"],
                ["close_connections", "--code", "4000", "--reason", "bye"],
                ["send_bytes"],
                ["silence_connections"],
            ):
                assert isinstance(await events.receive(), Subscribed)
                await served.ok("fault", *arguments)
                if arguments == ["silence_connections"]:
                    for _ in range(6):
                        await pass_time(adjustable_clock, 1.0)
                lost = await events.receive()
                assert isinstance(lost, Disconnected)
                codes.append(lost.code)
        assert codes == [1006, 4000, 1002, 1006]
        assert [line for line in served.told if line.startswith("fault")] == [
            "fault: drop_connections",
            "fault: close_connections code=4000 reason=bye",
            "fault: send_bytes",
            "fault: silence_connections",
        ]


@pytest.mark.parametrize(
    ("arguments", "hanging"),
    [
        (["refuse_connections"], 0),
        (["reject_handshakes", "503", "--retry-after", "0"], 0),
        (["hang_handshakes"], 1),
        (["withhold_confirmations", "--times", "2"], 2),
    ],
)
async def test_a_connection_that_fails_is_made_again(
    arguments: list[str], hanging: int, adjustable_clock: MockClock
) -> None:
    async def expire() -> None:
        handshakes = served.emulator.fake.record.handshakes
        for number in range(hanging):
            while len(handshakes) == number:  # noqa: ASYNC110  the fake only announces WebSockets that are open
                await trio.sleep(0.001)
            adjustable_clock.jump(OPEN_TIMEOUT)

    async with serving() as served, trio.open_nursery() as nursery:
        await served.ok("fault", *arguments)
        nursery.start_soon(expire)
        async with listening(environment=served.environment, open_timeout=OPEN_TIMEOUT) as events:
            assert isinstance(await events.receive(), Subscribed)
        if arguments[0] != "refuse_connections":
            assert len(served.emulator.fake.record.handshakes) == 2 + ("--times" in arguments)


async def test_pushes_can_be_swallowed_duplicated_delayed_and_reordered() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("fault", "swallow_pushes")
            await served.ok("fault", "duplicate_pushes", "--copies", "2")
            await served.ok("fault", "delay_pushes", "0.2")
            await served.ok("fault", "reorder_pushes", "2")
            for number in range(5):
                await served.emulator.fake.deliver(inbox_id=INBOX, subject=str(number))
            subjects = [(await next_mail(events)).message.subject for _ in range(4)]
        pushed = [line for line in served.told if ": pushed to" in line]
    # Mail 0 is swallowed, 1 comes three times (and out of the stream once), 2 later, and 4 before 3.
    assert subjects == ["1", "4", "3", "2"]
    assert len(pushed) == 3 + 3


async def test_pushes_can_be_corrupt_and_slow() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("fault", "corrupt_pushes")
            await served.emulator.fake.deliver(inbox_id=INBOX)
            assert isinstance(await events.receive(), UnknownEvent)
            await served.ok("fault", "slow_down", "10000")
            began = trio.current_time()
            await served.emulator.fake.deliver(inbox_id=INBOX, text="x" * 5000)
            await next_mail(events)
            assert trio.current_time() - began > 0.3


async def test_requests_fail_and_go_well_again() -> None:
    async with serving() as served:
        served.emulator.fake.mail.add_inbox(INBOX)
        async with httpx2.AsyncClient(
            base_url=f"{served.environment.http}/v0", headers={"Authorization": "Bearer x"}, timeout=None
        ) as client:
            await served.ok(
                "fault", "fail_requests", "429", "--retry-after", "7", "--path", "/messages", "--times", "all"
            )
            assert (await client.get("/inboxes")).status_code == 200
            limited = await client.get(f"/inboxes/{INBOX}/messages")
            assert (limited.status_code, limited.headers["Retry-After"]) == (429, "7")
            assert limited.json()["code"] == "rate_limit_exceeded"
            await served.ok("fault", "clear")
            assert (await client.get(f"/inboxes/{INBOX}/messages")).status_code == 200
            await served.ok("fault", "fail_requests", "304")
            assert (await client.get("/inboxes")).content == b""
            await served.ok("fault", "break_requests")
            with pytest.raises(httpx2.HTTPError):
                await client.get("/inboxes")
            await served.ok("fault", "hang_requests", "--times", "1")
            with pytest.raises(httpx2.ReadTimeout):
                await client.get("/inboxes", timeout=httpx2.Timeout(None, read=0.2))
        assert "GET /v0/inboxes: no answer, by hang_requests()" in served.told


async def test_in_an_outage_only_commands_are_answered_and_mail_is_kept() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("fault", "outage")
            assert isinstance(await events.receive(), Disconnected)
            attempts = served.emulator.fake.record.attempts
            await served.emulator.fake.wait_for(lambda: served.emulator.fake.record.attempts >= attempts + 2)
            with pytest.raises(httpx2.HTTPError):
                await client.get("/v0/inboxes")
            assert (await client.get("/_emulator")).json() == {"connected": 0, "subscribed": 0}
            assert (await served.ok("trigger", "message.received", "--inbox", INBOX)).endswith("pushed to 0\n")
            await served.ok("fault", "clear")
            assert isinstance(await events.receive(), Subscribed)
            assert len((await client.get(f"/v0/inboxes/{INBOX}/messages")).json()["messages"]) == 1
            assert len(served.emulator.fake.record.handshakes) == 2
    told = [line for line in served.told if "outage" in line and not line.endswith(("by outage()", "fault outage()"))]
    assert told == ["an outage begins", "fault: outage", "an outage ends"]
    assert served.told.count("a connection: fault outage()") >= 2
    assert "GET /v0/inboxes: no answer, by outage()" in served.told


async def test_an_outage_ends_when_its_time_is_over() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            began = trio.current_time()
            await served.ok("fault", "outage", "--seconds", "0.3")
            assert isinstance(await events.receive(), Disconnected)
            assert isinstance(await events.receive(), Subscribed)
            assert trio.current_time() - began >= 0.3
            await served.ok("fault", "outage", "--seconds", "0")


async def test_a_second_outage_is_refused_until_the_first_one_has_ended() -> None:
    async with serving() as served:
        await served.ok("fault", "outage")
        again = await served.post("faults", {"fault": "outage", "seconds": 0})
        assert again.status_code == 409
        assert "outage is active already" in again.json()["message"]
        assert "outage is active already" in (await served.command("fault", "outage")).stderr
        assert served.told.count("an outage ends") == 0
        await served.ok("fault", "clear")
        assert (await served.post("faults", {"fault": "outage"})).status_code == 200
    assert served.told[-1] == "an outage ends"


def strikes(served: Served) -> list[str]:
    return [line.removeprefix("chaos: ") for line in served.told if line.startswith("chaos: ")]


async def test_chaos_strikes_now_and_then_until_faults_are_cleared() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            await served.ok(
                "fault", "chaos", "--seed", "7", "--every", "0.02", "--faults", "drop_connections, swallow_pushes"
            )
            await served.emulator.fake.wait_for(lambda: set(strikes(served)) == {"drop_connections", "swallow_pushes"})
            await served.ok("fault", "clear")
            await served.emulator.fake.wait_subscribed()
            await served.emulator.fake.deliver(inbox_id=INBOX, subject="after it")
            while (await next_mail(events)).message.subject != "after it":
                pass
    told = [line for line in served.told if "chaos" in line and not line.startswith("chaos: ")]
    assert told == [
        "chaos begins, with the seed 7",
        "fault: chaos seed=7 every=0.02 faults=drop_connections,swallow_pushes",
        "chaos ends",
    ]
    ended = served.told.index("chaos ends")
    between = served.told[ended + 1 : served.told.index("faults: cleared", ended)]
    assert all(line.startswith("connection ") for line in between)  # of one that was cut just before
    assert not any(line.startswith("chaos: ") for line in served.told[ended:])


async def test_chaos_is_the_same_for_the_same_seed_and_ends_when_its_time_is_over(
    adjustable_clock: MockClock,
) -> None:
    async with serving() as served:
        for _ in range(2):
            command = {
                "fault": "chaos",
                "seed": 3,
                "every": 0.2,
                "seconds": 5.0,
                "faults": ["drop_connections", "duplicate_pushes", "delay_pushes"],
            }
            assert (await served.post("faults", command)).status_code == 200
            while served.told[-1] != "chaos ends":
                await pass_time(adjustable_clock, 0.1)
            served.told.append("again")
    first, second = " ".join(served.told).split("again")[:2]
    assert len(re.findall(r"chaos: \w+", first)) > 5
    for one, other in zip(*(re.findall(r"chaos: (\w+)", told) for told in (first, second)), strict=False):
        assert one == other


async def test_clearing_the_faults_ends_the_outage_in_chaos_too() -> None:
    async with serving() as served:
        await served.ok("fault", "chaos", "--seed", "1", "--every", "0.02", "--faults", "outage")
        await served.emulator.fake.wait_for(lambda: served.told.count("an outage begins") >= 2)
        await served.ok("fault", "clear")
        assert served.told.count("an outage begins") == served.told.count("an outage ends")
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)


async def test_an_outage_goes_on_when_chaos_ends_and_there_is_one_chaos_at_a_time() -> None:
    async with serving() as served:
        await served.ok("fault", "outage")
        await served.ok("fault", "chaos", "--seed", "1")
        result = await served.command("fault", "chaos", "--seed", "2", "--seconds", "0")
        assert result.exit_code == 1
        assert "the fault chaos is active already" in result.stderr
        await served.ok("fault", "clear")
        await served.ok("fault", "outage")
        await served.ok("fault", "chaos", "--seed", "1", "--seconds", "0")
        await served.emulator.fake.wait_for(lambda: served.told.count("chaos ends") == 2)
        assert served.told.count("an outage ends") == 1
        async with httpx2.AsyncClient() as client:
            with pytest.raises(httpx2.HTTPError):
                await client.get(f"{served.environment.http}/v0/inboxes")


async def test_commands_are_carried_out_one_after_the_other() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        began, go_on = trio.Event(), trio.Event()

        async def drop_connections() -> None:
            began.set()
            await go_on.wait()

        with patch.object(served.emulator.fake.faults, "drop_connections", drop_connections):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.post, "faults", {"fault": "outage"})
                await began.wait()
                nursery.start_soon(client.delete, "/_emulator/faults")
                while not served.emulator.commands.statistics().tasks_waiting:
                    assert (await client.get("/_emulator")).status_code == 200  # which is not a command
                go_on.set()
        assert served.told == ["an outage begins", "fault: outage", "an outage ends", "faults: cleared"]


async def test_a_bug_in_a_lasting_fault_ends_the_emulator() -> None:
    async def bug(*_: Any) -> None:
        raise ZeroDivisionError

    @asynccontextmanager
    async def outage() -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError

    for arguments in (
        ["outage", "--seconds", "0.05"],
        ["chaos", "--seed", "1", "--every", "0.05", "--faults", "drop_connections"],
    ):
        with patch.dict(CHAOS, drop_connections=bug), pytest.raises(ZeroDivisionError):
            async with serving() as served:
                with patch.object(served.emulator.fake.faults, "outage", outage):
                    await served.ok("fault", *arguments)
                    await trio.sleep_forever()


@pytest.mark.parametrize("fault", [{"fault": "outage"}, {"fault": "chaos", "seed": 1, "every": 0.01}])
async def test_a_signal_ends_it_while_a_fault_lasts(fault: dict[str, Any]) -> None:
    async with emulator_process() as (_, environment):
        async with httpx2.AsyncClient(base_url=environment.http) as client:
            assert (await client.post("/_emulator/faults", json=fault)).status_code == 200


def test_every_fault_of_the_control_api_has_a_command_and_the_other_way_round() -> None:
    assert {*REMOTE_FAULTS, "clear"} == set(fault_commands.commands)


@pytest.mark.parametrize("times", ["0", "-1", "many", "1.5"])
async def test_times_is_a_number_or_all(times: str) -> None:
    async with serving() as served:
        result = await served.command("fault", "hang_handshakes", "--times", times)
    assert result.exit_code != 0
    assert '"all"' in result.stderr


async def test_what_no_close_frame_can_carry_is_refused() -> None:
    async with serving() as served:
        for code in ("1006", "12345"):
            result = await served.command("fault", "close_connections", "--code", code)
            assert (result.exit_code, "like 1001 or 4000" in result.stderr) == (2, True)
            assert (await served.post("faults", {"fault": "close_connections", "code": int(code)})).status_code == 400
        result = await served.command("fault", "close_connections", "--reason", "x" * 124)
        assert "the emulator refused: reason is a string of at most 123 bytes" in result.stderr


# `reset`


async def test_a_reset_leaves_nothing_but_what_there_was_to_begin_with() -> None:
    async with serving(inboxes=[(INBOX, "support")], pods=["empty"]) as served:
        async with httpx2.AsyncClient(
            base_url=f"{served.environment.http}/v0", headers={"Authorization": f"Bearer {KEY}"}
        ) as client:

            async def send() -> Any:
                mail = {"to": ["bob@example.com"], "text": "Hi!"}
                answer = await client.post(
                    f"/inboxes/{INBOX}/messages/send", json=mail, headers={"Idempotency-Key": "1"}
                )
                return answer.json()

            async def listed(what: str) -> Any:
                return (await client.get(f"/{what}")).json()[what.rpartition("/")[2]]

            async def all_that_there_is() -> tuple[Any, ...]:
                inboxes = [(inbox["inbox_id"], inbox["pod_id"]) for inbox in await listed("inboxes")]
                pods = {pod["pod_id"] for pod in await listed("pods")}
                return inboxes, pods, await listed("threads"), await listed(f"inboxes/{INBOX}/messages")

            beginning = await all_that_there_is()
            assert beginning == ([(INBOX, "support")], {"default", "empty", "support"}, [], [])
            await client.post("/pods", json={"name": "another"})
            await client.post("/inboxes", json={"username": "another"})
            sent = await send()
            raw = await client.get(f"/inboxes/{INBOX}/messages/{sent['message_id']}/raw")
            assert (await client.get(raw.json()["download_url"])).status_code == 200
            assert await send() == sent
            assert await all_that_there_is() != beginning
            async with listening(Subscribe(inbox_ids=["third@agentmail.to"]), environment=served.environment):
                pass
            assert await served.ok("reset") == "reset: back to the initial state\n"
            assert await all_that_there_is() == beginning
            assert (await client.get(raw.json()["download_url"])).status_code == 403
            assert await send() != sent
    assert served.told.count("reset: back to the initial state") == 1


async def test_who_was_connected_before_a_reset_starts_afresh() -> None:
    async with serving() as served:
        async with listening(Subscribe(inbox_ids=[INBOX]), environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            for _ in range(2):
                await served.ok("reset")
                assert isinstance(await events.receive(), Disconnected)
                assert isinstance(await events.receive(), Subscribed)
            assert (await served.ok("trigger", "message.received", "--inbox", INBOX)).endswith("pushed to 1\n")
            await next_mail(events)
            emulator = served.emulator
            assert (
                len(emulator.fake.record.handshakes),
                len(emulator.fake.record.subscriptions),
                len(emulator.fake.record.frames),
            ) == (1, 1, 1)


async def test_a_reset_ends_all_faults() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        for fault in ("reject_handshakes 503", "swallow_pushes", "fail_requests 500"):
            await served.ok("fault", *fault.split(), "--times", "all")
        for fault in (
            "slow_down 1",
            "chaos --seed 1 --every 0.01 --faults outage,refuse_connections,hang_requests",
            "outage",
        ):
            await served.ok("fault", *fault.split())
        await served.ok("reset")
        assert (await client.get("/v0/inboxes")).status_code == 200
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("trigger", "message.received", "--inbox", INBOX)
            await next_mail(events)
        assert served.emulator.fake.record.attempts == 1


class InMemory:
    """The fake that an emulator has at the time, as a backend."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._emulator.fake, name)


async def test_what_a_fault_keeps_back_is_forgotten_by_a_reset(autojump_clock: MockClock) -> None:
    emulator = Emulator(_emulate.silence)
    emulator.fake.faults.delay_pushes(60)
    emulator.fake.faults.reorder_pushes(2)
    await emulator.fake.deliver(inbox_id=INBOX)
    await emulator.fake.deliver(inbox_id=INBOX)
    emulator.fake.faults.silence_connections()
    await emulator.reset()
    async with listening(backend=InMemory(emulator)) as events:
        assert isinstance(await events.receive(), Subscribed)
        emulator.fake.faults.delay_pushes(60)
        await emulator.fake.deliver(inbox_id=INBOX, subject="new")
        await trio.sleep(3600)
        assert (await next_mail(events)).message.subject == "new"
        assert events.statistics().current_buffer_used == 0


async def test_a_delayed_push_does_not_keep_the_mail_of_a_fake_that_was_reset(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.delitem(sys.modules, "trio_agentmail._pytest_plugin")  # it keeps the last fakes, for reports
    emulator = Emulator(_emulate.silence)
    emulator.fake.faults.delay_pushes(10**6)
    await emulator.fake.deliver(inbox_id=INBOX)
    old = weakref.ref(emulator.fake._agentmail)
    assert old() is not None
    await emulator.reset()
    await wait_all_tasks_blocked()
    gc.collect()
    assert old() is None


async def test_a_reset_closes_a_connection_to_a_port_that_a_fault_delays() -> None:
    emulator = Emulator(_emulate.silence)
    fake = emulator.fake
    fake.faults.delay_connections(10**6)
    async with fake.serve() as environment:
        port = int(environment.websockets.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await fake.wait_for(lambda: fake.record.attempts)
            await emulator.reset()
            assert await stream.receive_some() == b""


async def test_who_comes_in_the_middle_of_a_reset_is_served_by_the_new_fake(autojump_clock: MockClock) -> None:
    emulator = Emulator(_emulate.silence)
    before = emulator.fake
    cut = before._connections.cut

    async def somebody_comes() -> None:
        async with httpx2.AsyncClient(transport=FakeTransport(partial(respond, emulator))) as client:
            created = await client.post("https://x/v0/inboxes", json={}, headers={"Authorization": f"Bearer {KEY}"})
            assert created.status_code == 200
        async with listening(backend=InMemory(emulator)):
            assert (before.record.attempts, emulator.fake.record.attempts) == (1, 1)
        await cut()

    async with listening(backend=InMemory(emulator)) as events:
        assert isinstance(await events.receive(), Subscribed)
        with patch.object(before._connections, "cut", somebody_comes):
            await emulator.reset()
        assert (before.connected, before.record.requests, before._agentmail.inboxes()) == (0, [], ())
        assert emulator.fake.mail.messages(INBOX) == ()
        assert emulator.fake.explain().endswith("reset: back to the initial state")
        assert isinstance(await events.receive(), Disconnected)
        assert isinstance(await events.receive(), Subscribed)
        assert (len(emulator.fake.record.requests), len(emulator.fake._agentmail.inboxes())) == (1, 1)


async def test_a_connection_that_is_being_made_when_a_reset_comes_comes_to_nothing(autojump_clock: MockClock) -> None:
    emulator = Emulator(_emulate.silence)
    before = emulator.fake
    before.faults.delay_connections(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_and_wait, emulator)
        await before.wait_for(lambda: before.record.attempts)
        await emulator.reset()
        await emulator.fake.wait_subscribed()
        assert (before.record.attempts, before.record.handshakes) == (1, [])
        assert trio.current_time() >= 1
        nursery.cancel_scope.cancel()


async def test_who_hangs_or_is_silent_does_not_keep_a_reset_waiting(autojump_clock: MockClock) -> None:
    emulator = Emulator(_emulate.silence)
    fake = emulator.fake
    async with trio.open_nursery() as nursery, listening(backend=InMemory(emulator)):
        fake.faults.silence_connections()
        fake.faults.hang_handshakes(2)
        for _ in range(2):
            nursery.start_soon(open_and_wait, emulator)
        await fake.wait_for(lambda: len(fake.record.handshakes) == 3)
        began = trio.current_time()
        await emulator.reset()
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def open_and_wait(emulator: Emulator) -> None:
    async with listening(backend=InMemory(emulator)):
        await trio.sleep_forever()


# Finding the emulator


def test_no_emulator_there_is_one_clear_line() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        results = [
            run("fault", "drop_connections", "--emulator", url),
            run("fault", "drop_connections", AGENTMAIL_EMULATOR=url),
        ]
    for result in results:
        assert result.exit_code == 1
        [line] = result.stderr.splitlines()
        assert line.startswith(f"Error: there is no emulator at {url} (")
        assert "start one with `trio-agentmail emulate`" in line


@pytest.mark.parametrize("url", ["localhost:8490", "http://127.0.0.1:x", "ftp://127.0.0.1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    result = run("fault", "drop_connections", "--emulator", url)
    assert result.exit_code == 1
    assert "is not a URL; write one like http://127.0.0.1:8490" in result.stderr


async def test_another_server_is_not_taken_for_an_emulator() -> None:
    async with serving() as served:
        url = served.environment.http + "/v0/"
        assert (await trio.to_thread.run_sync(run, "fault", "drop_connections", "--emulator", url)).exit_code == 0
        result = await trio.to_thread.run_sync(run, "fault", "drop_connections", "--emulator", url + "inboxes")
    assert result.exit_code == 1
    assert "is not an emulator (status 401)" in result.stderr


# The control API


async def test_it_says_how_many_clients_are_connected() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        async with listening(environment=served.environment):
            assert (await client.get("/_emulator")).json() == {"connected": 1, "subscribed": 1}
        assert (await client.delete("/_emulator")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("faults", [], "not a JSON object"),
        ("faults", {}, "fault is one of drop_connections, close_connections"),
        ("faults", {"fault": ["drop_connections"]}, "fault is one of"),
        ("faults", {"fault": "drop_connections", "co\nde": 1}, "the fault drop_connections has no argument co?de"),
        ("faults", {"fault": "close_connections", "code": True}, "code is a close code"),
        ("faults", {"fault": "delay_pushes", "seconds": True}, "seconds is a number"),
        ("faults", {"fault": "delay_pushes", "seconds": -1}, "seconds is a number"),
        ("faults", {"fault": "reject_handshakes", "status": 99}, "status is an HTTP status"),
        (
            "faults",
            {"fault": "reject_handshakes", "status": 200},
            "status is an HTTP status that refuses, from 300 to 599",
        ),
        ("faults", {"fault": "reject_handshakes", "status": 299}, "status is an HTTP status that refuses"),
        ("faults", {"fault": "fail_requests", "status": 500, "path": 7}, "path is a string"),
        ("faults", {"fault": "fail_requests", "status": 500, "retry_after": "x"}, "retry_after is a number"),
        ("faults", {"fault": "duplicate_pushes", "copies": 0}, "copies is a number"),
        ("faults", {"fault": "reorder_pushes", "times": 1}, "times is a number from 2 to 1000"),
        ("faults", {"fault": "slow_down", "bytes_per_second": 0}, "bytes_per_second is a number of bytes"),
        ("faults", {"fault": "outage", "seconds": -1}, "seconds is a number"),
        ("faults", {"fault": "chaos"}, "seed is a whole number"),
        ("faults", {"fault": "chaos", "seed": 1.0}, "seed is a whole number"),
        ("faults", {"fault": "chaos", "seed": 1, "every": 0}, "every is a number of seconds"),
        (
            "faults",
            {"fault": "chaos", "seed": 1, "faults": "drop_connections"},
            "faults is a list of some of drop_connections, ",
        ),
        ("faults", {"fault": "chaos", "seed": 1, "faults": []}, "faults is a list of some of drop_connections, "),
        (
            "faults",
            {"fault": "chaos", "seed": 1, "faults": ["drop_connections", "flood"]},
            "faults is a list of some of drop_connections, ",
        ),
        (
            "faults",
            {"fault": "chaos", "seed": 1, "faults": [["drop_connections"]]},
            "faults is a list of some of drop_connections, ",
        ),
        ("reset", {"mail": True}, "reset takes no fields"),
        ("reset", [1], "not a JSON object"),
        ("trigger", {"event_type": "x"}, "event_type is one of message.received, "),
        ("trigger", {"event_type": "message.received", "inbox_id": 7}, "inbox_id is a string"),
        ("trigger", {"event_type": "message.sent", "inbox_id": "a", "to": [1]}, "to is a string, or a list of strings"),
        ("trigger", {"event_type": "message.received", "eml": "?"}, ""),
        (
            "trigger",
            {"event_type": "message.received", "inbox_id": "a", "attachments": "x"},
            "attachments must be a list of objects",
        ),
        (
            "trigger",
            {"event_type": "message.sent", "inbox_id": "a", "attachments": [{"content": "?"}]},
            "attachments must be given by their content, in Base64",
        ),
    ],
)
async def test_an_invalid_command_is_a_400_and_changes_nothing(path: str, body: Any, words: str) -> None:
    async with serving() as served:
        response = await served.post(path, body)
        assert response.status_code == 400
        assert words in response.json()["message"]
        assert (await served.post("trigger", {"event_type": "domain.verified"})).status_code == 200


async def test_what_is_not_json_is_a_400_unless_the_body_may_be_empty() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        assert (await client.post("/_emulator/faults", content=b"\xff")).status_code == 400
        for body in (b"", b"{}"):
            assert (await client.post("/_emulator/reset", content=body)).status_code == 200


async def test_half_an_emoji_in_a_command_is_repaired() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        body = rb'{"event_type": "message.received", "inbox_id": "agent@agentmail.to", "subject": "\ud83d"}'
        assert (await client.post("/_emulator/trigger", content=body)).status_code == 200
        assert served.emulator.fake.mail.messages(INBOX)[0].subject == "\ufffd"


async def test_several_recipients_and_null_for_what_is_not_given() -> None:
    async with serving() as served:
        command = {"event_type": "message.sent", "inbox_id": INBOX, "to": ["a@x", "b@x"], "subject": None}
        assert (await served.post("trigger", command)).status_code == 200
        eml = {"event_type": "message.received", "eml": base64.b64encode(EML).decode()}
        answer = (await served.post("trigger", eml)).json()
        assert (answer["inbox_ids"], answer["message_id"]) == ([INBOX], "<eml@example.com>")


async def test_a_head_is_answered_without_a_body_by_the_control_api_too() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        whole = await client.get("/_emulator")
        head = await client.head("/_emulator")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == whole.headers["Content-Length"]
        assert (await client.head("/_emulator/reset")).status_code == 404


async def test_a_page_in_a_browser_cannot_send_commands() -> None:
    async with serving() as served:
        response = await served.post("faults", {"fault": "drop_connections"}, Origin="http://127.0.0.1:1234")
        assert response.status_code == 403


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", 200),
        ("127.9.9.9", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("192.0.2.7", 403),
        ("fe80::1", 403),
    ],
)
async def test_commands_come_from_this_machine_only(address: str, status: int) -> None:
    emulator = Emulator(_emulate.silence)
    # As if it had been received at this address, on which no test can listen.
    request = httpx2.Request("GET", "http://localhost/_emulator", extensions={"server_address": address})
    response = await respond(emulator, request)
    assert isinstance(response, httpx2.Response)
    assert response.status_code == status


async def test_the_record_of_requests_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_agentmail.testing._emulator.emulator.MAX_REMEMBERED", 3)
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        for _ in range(5):
            await client.get("/v0/inboxes")
        assert len(served.emulator.fake.record.requests) == 3
        assert len(served.told) == 5


# Bugs and bounds


async def test_a_bug_costs_one_request_or_connection_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, adjustable_clock: MockClock
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with serving() as served:
        with monkeypatch.context() as patched:
            patched.setattr(MailStore, "index", bug)
            patched.setattr(AgentMail, "know", bug)
            headers = {"Authorization": f"Bearer {KEY}"}
            async with httpx2.AsyncClient(base_url=served.environment.http, headers=headers) as client:
                assert (await client.get("/v0/inboxes")).status_code == 500
            logged = caplog.text.count("ZeroDivisionError")
            stream = listening(
                Subscribe(inbox_ids=[INBOX]), environment=served.environment, enter_timeout=ENTER_TIMEOUT
            )
            await failure_to_enter(
                stream, adjustable_clock, lambda: caplog.text.count("ZeroDivisionError") > logged > 0
            )
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
    assert caplog.text.count("ZeroDivisionError") >= 2
    assert KEY not in caplog.text


async def test_trigger_counts_each_receiver_once() -> None:
    async with serving(inboxes=[("one@agentmail.to", None), ("two@agentmail.to", None)]) as served:
        eml = base64.b64encode(b"To: one@agentmail.to, two@agentmail.to\n\n").decode()
        with_both = {"event_type": "message.received", "eml": eml}
        assert (await served.post("trigger", with_both)).json()["receivers"] == 0
        async with listening(Subscribe(inbox_ids=["one@agentmail.to"]), environment=served.environment):
            assert (await served.post("trigger", with_both)).json()["receivers"] == 1
            async with listening(environment=served.environment):
                assert (await served.post("trigger", with_both)).json()["receivers"] == 2


async def test_trigger_prints_json_if_asked() -> None:
    async with serving() as served:
        answer = json.loads(await served.ok("trigger", "message.received", "--inbox", INBOX, "--json"))
        assert answer["receivers"] == 0
        assert answer["message_id"] == served.emulator.fake.mail.messages(INBOX)[0].message_id


async def test_a_fault_of_open_websockets_says_when_there_are_none() -> None:
    async with serving() as served:
        result = await served.command("fault", "drop_connections")
        assert (result.exit_code, result.stderr) == (0, "no WebSocket is open\n")
        async with listening(environment=served.environment):
            assert (await served.command("fault", "drop_connections")).stderr == ""


def test_trigger_tells_which_options_are_for_which_event_type() -> None:
    text = run("trigger", "--help").stdout
    assert "message.opened\n      --message-id --thread-id\n" in text
    assert all(event_type in text for event_type in EVENT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emulate", "--inbox", "=pod"], "an inbox must not be empty"),
        (["emulate", "--http-port", "5", "--websocket-port", "5"], "must be different"),
        (["fault", "delay_pushes", "nan"], "write a number"),
        (["fault", "delay_pushes", "inf"], "0<=x<=1000000"),
        (["fault", "swallow_pushes", "--times", "0"], "from 1 to 1000000"),
    ],
)
def test_an_invalid_argument_is_bad_usage(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_ports_are_advised_where_it_is_the_port_that_is_wrong() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("emulate", "--http-port", str(taken.getsockname()[1]))
    assert (result.exit_code, "choose other ports" in result.stderr) == (1, True)
    result = run("emulate", "--host", "192.0.2.1")
    assert (result.exit_code, "choose other ports" in result.stderr) == (1, False)


@pytest.mark.parametrize(
    ("event_type", "label"),
    [("delivered", "delivered"), ("bounced", "bounced"), ("complained", "complained"), ("opened", "opened")],
)
async def test_what_happens_to_a_mail_labels_it(event_type: str, label: str) -> None:
    async with serving() as served:
        sent = await served.emulator.fake.mail.send(inbox_id=INBOX, to="jane@example.com")
        assert sent.send.message_id is not None
        await served.ok("trigger", f"message.{event_type}", "--inbox", INBOX, "--message-id", sent.send.message_id)
        assert label in served.emulator.fake.mail.messages(INBOX)[0].labels
        await served.ok("trigger", f"message.{event_type}", "--inbox", INBOX, "--message-id", "<another>")
        await served.ok("trigger", f"message.{event_type}", "--inbox", INBOX)


async def test_what_happens_to_a_mail_happens_to_all_who_got_it() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        served.emulator.fake.mail.add_inbox(INBOX)
        body = {"to": "to@example.com", "cc": "cc@example.com", "bcc": "bcc@example.com", "text": "Hi"}
        headers = {"Authorization": f"Bearer {KEY}"}
        sent = await client.post(f"/v0/inboxes/{INBOX}/messages/send", headers=headers, json=body)
        message_id = sent.json()["message_id"]
        async with listening(Subscribe(event_types=["message.delivered"]), environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("trigger", "message.delivered", "--inbox", INBOX, "--message-id", message_id)
            event = await events.receive()
            assert isinstance(event, MessageDeliveredEvent)
            assert event.delivery.recipients == ("to@example.com", "cc@example.com", "bcc@example.com")


async def test_a_call_that_the_fake_lacks_is_told_from_a_resource_that_does_not_exist() -> None:
    async with serving() as served, httpx2.AsyncClient(base_url=served.environment.http) as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = await client.get("/v0/drafts", headers=headers)
        assert (answer.status_code, answer.json()["message"]) == (404, "FakeAgentMail has no GET /v0/drafts")
        answer = await client.get("/v0/inboxes/nobody", headers=headers)
        assert (answer.status_code, answer.json()["message"]) == (404, "not found")


@pytest.mark.parametrize("request_line", [b"HEAD * HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"CONNECT /v0/inboxes HTTP/1.1"])
async def test_no_request_ends_it(request_line: bytes) -> None:
    async with serving() as served:
        await served.ok("fault", "fail_requests", "200", "--times", "all")
        port = int(served.environment.http.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request_line + b"\r\nHost: localhost\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
        await served.ok("fault", "clear")


async def test_a_bug_on_a_connection_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def bug(*_: object) -> None:
        raise ZeroDivisionError

    async with serving() as served:
        with monkeypatch.context() as patched:
            patched.setattr(HttpConnection, "_answer_requests", bug)
            async with httpx2.AsyncClient(base_url=served.environment.http) as client:
                with pytest.raises(httpx2.HTTPError):
                    await client.get("/v0/inboxes")
        await served.ok("fault", "clear")
    assert "ZeroDivisionError" in caplog.text


async def test_the_record_of_pings_has_a_bound() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            for number in range(3 * MAX_REMEMBERED):
                served.emulator.fake._websockets.take_ping(number)
        assert len(served.emulator.fake.record.pings) == MAX_REMEMBERED
        await served.emulator.fake.deliver(inbox_id=INBOX)
        assert served.emulator.fake._connections._receivers is None
