"""The commands `emulate`, `trigger` and `fault`: as processes that talk to each other, and each branch in this one."""

import base64
import json
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from click.testing import CliRunner, Result

from tests.streams import open_agentmail_stream
from tests.test_cli import read_rest, read_until, running
from trio_agentmail import (
    AgentMailEnvironment,
    AuthenticationError,
    Disconnected,
    Event,
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
from trio_agentmail.cli._emulator_orders import fault_commands
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.testing._emulator import Emulator
from trio_agentmail.testing._emulator_faults import FAULTS
from trio_agentmail.testing._emulator_trigger import EVENT_TYPES

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
    """An emulator as a process of its own, asked to end when the block does."""
    async with running("emulate", "--json", *ANY_PORTS, *arguments) as process:
        where = json.loads(await read_until(process, b"\n"))
        yield process, AgentMailEnvironment(**where)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await read_rest(process.stdout) == b""
        assert await read_rest(process.stderr) == b""


@attrs.define
class Served:
    """An emulator in this process, on ports, and what it tells."""

    emulator: Emulator
    environment: AgentMailEnvironment
    told: list[str]

    async def command(self, *arguments: str) -> Result:
        """Run a command on it, in a thread, since it waits for the answer of this one."""
        url = ("--emulator", self.environment.http)
        return await trio.to_thread.run_sync(partial(run, *arguments, *url))

    async def ok(self, *arguments: str) -> str:
        result = await self.command(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.environment.http) as client:
            return await client.post(f"/_emulator/{path}", json=body, headers=headers)


@asynccontextmanager
async def serving(**arguments: Any) -> AsyncIterator[Served]:
    told: list[str] = []
    emulator = Emulator(told.append, **arguments)
    with trio.fail_after(20):
        async with emulator.serve() as environment:
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


# As processes


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
        async with httpx.AsyncClient(
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
            async with httpx.AsyncClient(base_url=http) as client:
                await client.get("/v0/inboxes", params={"limit": "1"})
                order = {"event_type": "message.received", "inbox_id": INBOX, "subject": HOSTILE}
                await client.post("/_emulator/trigger", json=order)
                await next_mail(events)
        output = await read_until(process, b"closed by the client with 1000\n")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        output += await read_rest(process.stdout)
    lines = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in output.decode().splitlines()]
    lines.remove("connection 1: at its end before it was open")  # it may take a while to be noticed
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
        async with httpx.AsyncClient() as client:
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
    assert "Whoever reaches this machine can read and send" in output
    assert "http://127.0.0.1:" in output


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_is_written_as_urls_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    output = await emulate_until_told_to_stop(capsys, None, host="::1")
    assert json.loads(output)["http"].startswith("http://[::1]:")


async def test_a_terminal_that_pauses_costs_lines_and_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    log = _emulate.Log()
    for number in range(_emulate.MAX_WAITING + 5):
        log.tell(str(number))
    with trio.move_on_after(0.5):
        await log.print_to(Output())
    log.tell(HOSTILE)
    with trio.move_on_after(0.5):
        await log.print_to(Output())
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before.endswith(f"  {_emulate.MAX_WAITING - 1}")
    assert "(5 lines before this are left out)" in last
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
    assert where == ["127.0.0.1", 8490, 8491]
    assert _emulate.DEFAULT_EMULATOR == "http://127.0.0.1:8490"
    assert emulator.api_keys is None
    assert log is not None
    greeting = _emulate.greeting(
        AgentMailEnvironment(http="http://127.0.0.1:8490", websockets="ws://127.0.0.1:8491"), (), is_open=False
    )
    assert "AGENTMAIL_EMULATOR" not in greeting
    assert "Whoever" not in greeting
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
    )
    assert emulator.permissions == ("inbox_read",)
    assert (emulator.api_keys, log, where) == (("a=", "b"), None, ["127.0.0.1", 1, 8491])


def test_inboxes_and_pods_are_there_to_begin_with_and_json_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator, *_ = options_of(
        monkeypatch, "--json", "--inbox", INBOX, "--inbox", "b@x=sales", "--pod", "empty", "--pod", "sales"
    )

    async def inboxes_by_pod() -> dict[str, list[str]]:
        found = {}
        async with httpx.AsyncClient(
            transport=emulator.http_transport(), base_url="http://x/v0", headers={"Authorization": "Bearer x"}
        ) as client:
            for pod in ("default", "sales", "empty"):
                inboxes = (await client.get(f"/pods/{pod}/inboxes")).json()["inboxes"]
                found[pod] = [inbox["inbox_id"] for inbox in inboxes]
        return found

    assert trio.run(inboxes_by_pod) == {"default": [INBOX], "sales": ["b@x"], "empty": []}


def test_a_host_is_an_ip_address() -> None:
    result = run("emulate", "--host", "example.com")
    assert result.exit_code == 2
    assert "write an IP address" in result.stderr


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
        held = await served.emulator.deliver(inbox_id=INBOX, held=True)
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
        sent = await served.emulator.send(inbox_id=INBOX, to=["bob@example.com"])
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
        served.emulator.add_inbox(INBOX)
        async with listening(environment=served.environment) as events:
            printed = await served.ok("trigger", "message.received", "--eml", str(path))
            event = await next_mail(events)
            assert "message_id=<eml@example.com>" in printed
            assert (event.message.inbox_id, event.message.subject) == (INBOX, "Zażółć")
            await served.ok("trigger", "message.security.review", "--eml", str(path), "--inbox", "another@agentmail.to")
            held = await events.receive()
        assert isinstance(held, MessageSecurityReviewEvent)
        assert held.message.inbox_id == "another@agentmail.to"


async def test_what_nobody_listens_for_is_said_on_standard_error() -> None:
    async with serving() as served:
        result = await served.command("trigger", "message.received", "--inbox", INBOX, "--from", "bob@example.com")
    assert result.exit_code == 0
    assert result.stdout.endswith("pushed to 0\n")
    assert result.stderr.startswith("nobody listens for it")


def test_an_event_type_that_is_not_known_lists_those_that_are() -> None:
    result = run("trigger", "message.exploded")
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
        (["message.security.override", "--inbox", INBOX], "needs the message_id of a mail that is held"),
        (["message.security.override", "--inbox", INBOX, "--message-id", "<no>"], "there is no mail <no>"),
        (["message.security.override", "--inbox", INBOX, "--message-id", "<1>"], "is not held"),
        (["message.received", "--inbox", "other@x", "--thread-id", "t"], "the thread t is in the inbox"),
        (["message.received", "--eml", __file__], "the mail is addressed to nobody"),
        (["message.received", "--eml", __file__, "--subject", "x"], "with eml, only inbox_id"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_in_one_line(arguments: list[str], words: str) -> None:
    async with serving() as served:
        await served.emulator.deliver(inbox_id=INBOX, message_id="<1>", thread_id="t")
        result = await served.command("trigger", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the emulator refuses: ")
    assert words in result.stderr


# `fault`


async def test_cut_close_garbage_and_silent_are_for_the_websockets_that_are_open() -> None:
    async with serving() as served:
        async with listening(environment=served.environment, ping_interval=0.2, ping_timeout=0.2) as events:
            codes = []
            for arguments in (["cut"], ["close", "--code", "4000", "--reason", "bye"], ["garbage"], ["silent"]):
                assert isinstance(await events.receive(), Subscribed)
                await served.ok("fault", *arguments)
                lost = await events.receive()
                assert isinstance(lost, Disconnected)
                codes.append(lost.code)
        assert codes == [1006, 4000, 1002, 1006]
        assert [line for line in served.told if line.startswith("fault")] == [
            "fault: cut",
            "fault: close code=4000 reason=bye",
            "fault: garbage",
            "fault: silent",
        ]


@pytest.mark.parametrize(
    "arguments", [["refuse"], ["reject", "503", "--retry-after", "0"], ["hang"], ["withhold", "--times", "2"]]
)
async def test_a_connection_that_fails_is_made_again(arguments: list[str]) -> None:
    async with serving() as served:
        await served.ok("fault", *arguments)
        async with listening(environment=served.environment, open_timeout=0.3) as events:
            assert isinstance(await events.receive(), Subscribed)
        if arguments[0] != "refuse":
            assert len(served.emulator.handshakes) == 2 + ("--times" in arguments)


async def test_pushes_can_be_swallowed_duplicated_delayed_and_reordered() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("fault", "swallow")
            await served.ok("fault", "duplicate", "--copies", "2")
            await served.ok("fault", "delay", "0.2")
            await served.ok("fault", "reorder", "2")
            for number in range(5):
                await served.emulator.deliver(inbox_id=INBOX, subject=str(number))
            subjects = [(await next_mail(events)).message.subject for _ in range(4)]
        pushed = [line for line in served.told if ": pushed to" in line]
    # Mail 0 is swallowed, 1 comes three times (and out of the stream once), 2 later, and 4 before 3.
    assert subjects == ["1", "4", "3", "2"]
    assert len(pushed) == 3 + 3


async def test_pushes_can_be_corrupt_and_slow() -> None:
    async with serving() as served:
        async with listening(environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            await served.ok("fault", "corrupt")
            await served.emulator.deliver(inbox_id=INBOX)
            assert isinstance(await events.receive(), UnknownEvent)
            await served.ok("fault", "slow", "10000")
            began = trio.current_time()
            await served.emulator.deliver(inbox_id=INBOX, text="x" * 5000)
            await next_mail(events)
            assert trio.current_time() - began > 0.3


async def test_requests_fail_and_go_well_again() -> None:
    async with serving() as served:
        served.emulator.add_inbox(INBOX)
        async with httpx.AsyncClient(
            base_url=f"{served.environment.http}/v0", headers={"Authorization": "Bearer x"}, timeout=1.0
        ) as client:
            await served.ok("fault", "rest-error", "429", "--retry-after", "7", "--path", "/messages", "--times", "all")
            assert (await client.get("/inboxes")).status_code == 200
            limited = await client.get(f"/inboxes/{INBOX}/messages")
            assert (limited.status_code, limited.headers["Retry-After"]) == (429, "7")
            assert limited.json()["name"] == "emulated"
            await served.ok("fault", "clear")
            assert (await client.get(f"/inboxes/{INBOX}/messages")).status_code == 200
            await served.ok("fault", "rest-error", "304")
            assert (await client.get("/inboxes")).content == b""
            await served.ok("fault", "rest-break")
            with pytest.raises(httpx.HTTPError):
                await client.get("/inboxes")
            await served.ok("fault", "rest-hang", "--times", "1")
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/inboxes")
        assert "GET /v0/inboxes: no answer" in served.told


def test_every_fault_of_the_control_api_has_a_command_and_the_other_way_round() -> None:
    assert {*FAULTS, "clear"} == set(fault_commands.commands)


@pytest.mark.parametrize("times", ["0", "-1", "many", "1.5"])
async def test_times_is_a_number_or_all(times: str) -> None:
    async with serving() as served:
        result = await served.command("fault", "hang", "--times", times)
    assert result.exit_code != 0
    assert '"all"' in result.stderr


async def test_what_no_close_frame_can_carry_is_refused() -> None:
    async with serving() as served:
        for arguments in (["--code", "1006"], ["--code", "12345"], ["--reason", "x" * 124]):
            assert "the emulator refuses: " in (await served.command("fault", "close", *arguments)).stderr


# Where the emulator is


def test_no_emulator_there_is_one_clear_line() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        results = [run("fault", "cut", "--emulator", url), run("fault", "cut", AGENTMAIL_EMULATOR=url)]
    for result in results:
        assert result.exit_code == 1
        [line] = result.stderr.splitlines()
        assert line.startswith(f"Error: there is no emulator at {url} (")
        assert "`trio-agentmail emulate` starts one" in line


@pytest.mark.parametrize("url", ["localhost:8490", "http://127.0.0.1:x", "ftp://127.0.0.1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    result = run("fault", "cut", "--emulator", url)
    assert result.exit_code == 1
    assert "is no URL; write one like http://127.0.0.1:8490" in result.stderr


async def test_another_server_is_not_taken_for_an_emulator() -> None:
    async with serving() as served:
        url = served.environment.http + "/v0/"
        assert (await trio.to_thread.run_sync(run, "fault", "cut", "--emulator", url)).exit_code == 0
        result = await trio.to_thread.run_sync(run, "fault", "cut", "--emulator", url + "inboxes")
    assert result.exit_code == 1
    assert "is no emulator (status 401)" in result.stderr


# The control API


async def test_it_says_how_many_are_there() -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.environment.http) as client:
        async with listening(environment=served.environment):
            assert (await client.get("/_emulator")).json() == {"connected": 1, "subscribed": 1}
        assert (await client.delete("/_emulator")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("faults", [], "not a JSON object"),
        ("faults", {}, "fault is one of cut, close"),
        ("faults", {"fault": ["cut"]}, "fault is one of"),
        ("faults", {"fault": "cut", "co\nde": 1}, "the fault cut takes no co?de"),
        ("faults", {"fault": "close"}, "code is a close code"),
        ("faults", {"fault": "delay", "seconds": True}, "seconds is a number"),
        ("faults", {"fault": "delay", "seconds": -1}, "seconds is a number"),
        ("faults", {"fault": "reject", "status": 99}, "status is an HTTP status"),
        ("faults", {"fault": "rest-error", "status": 500, "path": 7}, "path is a text"),
        ("faults", {"fault": "rest-error", "status": 500, "retry_after": "x"}, "retry_after is a number"),
        ("faults", {"fault": "duplicate", "copies": 0}, "copies is a number"),
        ("faults", {"fault": "reorder", "count": 1}, "count is a number"),
        ("faults", {"fault": "slow", "rate": 0}, "rate is a number of bytes"),
        ("trigger", {"event_type": "x"}, "event_type is one of message.received, "),
        ("trigger", {"event_type": "message.received", "inbox_id": 7}, "inbox_id is a text"),
        ("trigger", {"event_type": "message.sent", "inbox_id": "a", "to": [1]}, "to is a text, or a list of texts"),
        ("trigger", {"event_type": "message.received", "eml": "?"}, ""),
    ],
)
async def test_a_body_that_makes_no_sense_is_a_400_and_harms_nobody(path: str, body: Any, words: str) -> None:
    async with serving() as served:
        response = await served.post(path, body)
        assert response.status_code == 400
        assert words in response.json()["message"]
        assert (await served.post("trigger", {"event_type": "domain.verified"})).status_code == 200


async def test_what_is_no_json_is_a_400() -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.environment.http) as client:
        assert (await client.post("/_emulator/faults", content=b"\xff")).status_code == 400


async def test_several_recipients_and_null_for_what_is_not_given() -> None:
    async with serving() as served:
        order = {"event_type": "message.sent", "inbox_id": INBOX, "to": ["a@x", "b@x"], "subject": None}
        assert (await served.post("trigger", order)).status_code == 200
        eml = {"event_type": "message.received", "eml": base64.b64encode(EML).decode()}
        answer = (await served.post("trigger", eml)).json()
        assert (answer["inbox_ids"], answer["message_id"]) == ([INBOX], "<eml@example.com>")


async def test_a_page_in_a_browser_cannot_give_orders() -> None:
    async with serving() as served:
        response = await served.post("faults", {"fault": "cut"}, Origin="http://127.0.0.1:1234")
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
async def test_orders_come_from_this_machine_only(address: str, status: int) -> None:
    emulator = Emulator(_emulate.silence)
    # As if it had been received at this address, on which no test can listen.
    request = httpx.Request("GET", "http://localhost/_emulator", extensions={"server_address": address})
    assert (await emulator._respond(request)).status_code == status


async def test_what_is_remembered_of_requests_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_agentmail.testing._emulator.MAX_REMEMBERED", 3)
    async with serving() as served, httpx.AsyncClient(base_url=served.environment.http) as client:
        for _ in range(5):
            await client.get("/v0/inboxes")
        assert len(served.emulator.requests) == 3
        assert len(served.told) == 5
