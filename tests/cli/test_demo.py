"""`trio-agentmail demo`: its story, its verdict, and its exit status."""

import re
import signal
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.commands import INBOX, NOON, read_rest, read_until, run, running
from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.cli import _demo
from trio_agentmail.cli._demos import outages
from trio_agentmail.cli._demos.mail_numbers import ranges
from trio_agentmail.cli._demos.outages_verdict import OutageRecord, judge, summary
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.cli._signals import Interrupted
from trio_agentmail.events import (
    CaughtUp,
    Disconnected,
    Event,
    Message,
    MessageReceivedEvent,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.testing import FakeAgentMail

# As a process


async def test_the_demo_succeeds_without_a_key_and_without_colours_in_a_pipe() -> None:
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
async def test_an_interrupted_demo_says_that_it_has_shown_nothing(signum: signal.Signals) -> None:
    async with running("demo") as process:
        await read_until(process, b"subscribed")
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        assert b"promises" not in await read_rest(process.stdout)
        assert (await read_rest(process.stderr)).decode() == (
            "interrupted before the end: this run shows neither success nor failure\n"
        )


# In this process


async def perform(fake: FakeAgentMail) -> bool:
    """Run the demo in memory."""
    return await outages.perform(Output(), fake, AgentMailEnvironment.PROD, backend=fake)


async def test_the_demo_breaks_the_connection_in_many_ways_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    assert await perform(FakeAgentMail())
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


async def test_without_recovery_the_demo_reports_lost_mail(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scan_nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr("trio_agentmail._recovery.listing.MailListing.scan", scan_nothing)
    monkeypatch.setattr(outages, "SWALLOWED", 1)
    assert not await perform(FakeAgentMail())
    output = capsys.readouterr().out
    assert re.search(r"BROKEN +every mail that was sent was delivered", output)
    assert re.search(r"lost [1-9]\d*, .*: the promises did NOT hold", output.splitlines()[-1])


async def test_without_deduplication_the_demo_reports_a_broken_promise(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._delivered.Delivered.claim", lambda *_: True)  # no de-duplication
    assert not await perform(FakeAgentMail())
    output = capsys.readouterr().out
    assert re.search(r"BROKEN +nothing was delivered twice", output)
    assert output.endswith("the promises did NOT hold\n")


async def test_the_demo_has_a_time_limit(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "TIME_LIMIT", 3.0)
    fake = FakeAgentMail()
    fake.faults.hang_handshakes(None)
    assert not await perform(fake)
    assert trio.current_time() < 4
    assert re.search(r"BROKEN +the demo ended within its time limit", capsys.readouterr().out)


async def test_the_demo_is_served_on_a_loopback_port(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "TIME_LIMIT", 0.2)
    assert not await outages.outage_demo(Output())
    assert "ws://127.0.0.1:" in capsys.readouterr().out


async def test_an_interrupted_demo_prints_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def interrupt() -> None:
            await trio.sleep(0.2)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            await outages.outage_demo(Output())
    assert "promises" not in capsys.readouterr().out


@pytest.mark.parametrize(("kept", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_says_whether_all_promises_were_kept(
    monkeypatch: pytest.MonkeyPatch, kept: bool, status: int
) -> None:
    async def demo(_: Output) -> bool:
        return kept

    monkeypatch.setattr(_demo, "outage_demo", demo)
    assert run("demo").exit_code == status


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "--crash"]])
def test_an_interrupted_demo_has_an_exit_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    async def demo(_: Output) -> bool:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(_demo, "outage_demo", demo)
    monkeypatch.setattr(_demo, "crash_demo", demo)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.startswith("interrupted before the end")


def test_a_demo_whose_reader_has_gone_ends_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    async def demo(_: Output) -> bool:
        raise OutputClosed

    monkeypatch.setattr(_demo, "outage_demo", demo)
    result = run("demo")
    assert (result.exit_code, result.output) == (1, "")


def mail(number: int, origin: str = "live") -> MessageReceivedEvent:
    return MessageReceivedEvent(message=Message(inbox_id=INBOX, message_id=f"<{number}@demo.example>"), origin=origin)


GAP = (Disconnected(reason="cut", code=1006), Subscribed())
CLOSED = CaughtUp(since=NOON)
SEEN: list[Event] = [Subscribed(), mail(1), UnknownEvent(), *GAP, mail(3), mail(2, "recovered"), CLOSED]
GOOD = OutageRecord(
    sent={1: True, 2: False, 3: True, 4: False},
    # Mail 4 was held. Mail 3 was pushed, and mail 2 found by recovery.
    seen=[*SEEN, Subscribed(), mail(4, "recovered")],
    released={4: 6},
    broken_with=[1006],
    replacements=1,
    oddities=1,
    patient=[True, True],
    goodbye=1000,
    finished=True,
)


def test_a_good_run_has_a_good_verdict() -> None:
    assert all(kept for _, kept in judge(GOOD))
    assert GOOD.mended
    assert summary(GOOD, kept=True) == (
        "sent 4, delivered 4, recovered 2, lost 0, duplicated 0, reconnected 1: the promises held"
    )


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"sent": {1: True, 2: False, 3: True}}, "every delivered mail had been sent"),
        ({"sent": {**GOOD.sent, 5: True}}, "every mail that was sent was delivered"),
        ({"sent": {**GOOD.sent, 5: False}}, "every mail that was sent was delivered"),
        ({"seen": [*GOOD.seen, mail(3)]}, "nothing was delivered twice"),
        ({"seen": [*GOOD.seen, mail(3, "recovered")]}, "nothing was delivered twice"),
        (
            {"sent": {**GOOD.sent, 5: True, 6: True}, "seen": [*GOOD.seen, mail(6), mail(5)]},
            "each connection's mail",
        ),
        ({"sent": {**GOOD.sent, 5: False}, "seen": [*GOOD.seen, mail(5)]}, "mail that was not pushed"),
        ({"released": {4: 10}}, "no mail was delivered while it was held"),
        ({"broken_with": [1001]}, "each loss was reported once, with its code"),
        ({"seen": [*GOOD.seen, *GAP, CLOSED]}, "each loss was reported once, with its code"),
        (
            {"seen": [*GOOD.seen[:3], GAP[0], *GOOD.seen[5:7], GAP[1], *GOOD.seen[7:]]},
            "each loss was followed",
        ),
        ({"seen": [event for event in GOOD.seen if event is not CLOSED]}, "each gap was closed"),
        ({"replacements": 0}, "a new subscription took over"),
        ({"oddities": 2}, "every unknown or invalid frame"),
        ({"patient": [True, False]}, "each Retry-After was respected"),
        ({"patient": []}, "each Retry-After was respected"),
        ({"goodbye": None}, "the last connection was closed with code 1000"),
        ({"finished": False}, "the demo ended within its time limit"),
    ],
)
def test_the_verdict_names_the_broken_promise(changes: dict[str, Any], broken: str) -> None:
    [promise] = [promise for promise, kept in judge(attrs.evolve(GOOD, **changes)) if not kept]
    assert promise.startswith(broken)


def test_a_loss_is_mended_when_its_gap_is_closed() -> None:
    assert not OutageRecord(broken_with=[1006]).mended
    assert not OutageRecord(broken_with=[1006], seen=[*GAP]).mended
    assert OutageRecord(broken_with=[1006], seen=[*GAP, CLOSED]).mended


def test_the_last_line_counts_lost_mail_that_was_not_pushed() -> None:
    record = attrs.evolve(GOOD, sent={**GOOD.sent, 5: False})
    assert "lost 1, duplicated 0" in summary(record, kept=False)
    assert summary(OutageRecord(), kept=False) == (
        "sent 0, delivered 0, recovered 0, lost 0, duplicated 0, reconnected 0: the promises did NOT hold"
    )


def test_numbers_are_shown_as_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([7]) == "7"
    assert ranges([3, 1, 2, 7, 9, 8]) == "1 to 3, 7 to 9"
