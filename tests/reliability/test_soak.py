"""A minute of the soak test on real sockets, and its judge. The whole soak is `python -m tests.benchmarks.soak`.

Counts are asserted, and no durations: a slow machine only has fewer mails.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.soak.judge import Judge
from tests.benchmarks.soak.run import Load, soak

PATIENCE = 180.0
"""Seconds after the last mail, in which all mail must have come."""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_in_a_minute_of_mail_and_cuts_nothing_is_lost_or_comes_twice(tmp_path: Path) -> None:
    outcome = soak(tmp_path, Load(seconds=60.0), PATIENCE)
    print(outcome.report())
    assert outcome.judge.holds, outcome.report()
    # A failure that did not happen tests nothing.
    assert outcome.judge.cuts.keys() == {"reset", "close-frame", "end-of-TCP"}
    assert outcome.judge.origins.keys() == {"live", "recovered"}
    assert outcome.judge.acked.keys() == outcome.judge.sent.keys()


LOG = """\
confirmed 1 0.5
mail 0 1.0 0.0
mail 1 2.0 7.0
ended 1 2.5 reset 0 2
mail 2 3.0 0.0
confirmed 2 4.0
finished 5.0
"""

LEDGER = """\
subscribed 0.5
got 1.25 0 live
acked 1.5 0
got 2.25 1 live
acked 2.5 1
disconnected 2.75 1006
subscribed 4.0
got 4.5 2 recovered
acked 4.75 2
caught-up 4.75 0 1 0
"""


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Judge]:
    found = Judge(tmp_path / "log", tmp_path / "ledger")
    yield found
    found.close()


def read(judge: Judge, directory: Path, log: str, ledger: str) -> None:
    for name, text in (("log", log), ("ledger", ledger)):
        with (directory / name).open("a") as file:
            file.write(text)
    judge.read()


def test_the_judge_accepts_a_run_in_which_all_mail_came_once(judge: Judge, tmp_path: Path) -> None:
    read(judge, tmp_path, LOG, LEDGER)
    assert judge.holds
    assert judge.is_complete
    assert judge.complete_after == -0.5
    assert judge.latencies(lambda sent, got: sent.at >= got.calm_since) == [0.25, 0.25]
    assert judge.ack_times == [0.25, 0.25, 0.25]
    assert judge.gaps == [(2.75, 4.75)]
    assert judge.diagnosis() == []


def test_latency_outside_gaps_counts_mail_sent_and_delivered_while_no_gap_is_open(judge: Judge, tmp_path: Path) -> None:
    log = "mail 3 4.5 0\nmail 4 4.6 0\nmail 5 6.0 0\n"
    ledger = "disconnected 5.0 1006\ngot 5.25 4 live\ncaught-up 5.5 0 0 0\ngot 6.5 5 live\n"
    read(judge, tmp_path, LOG + log, LEDGER + "got 5.0 3 live\n" + ledger)
    assert judge.latencies(lambda sent, got: sent.at >= got.calm_since) == [0.25, 0.25, 0.5]
    assert judge.latencies(lambda sent, got: not got.gap) == [0.25, 0.25, 0.5, 0.5]
    assert judge.latencies(lambda sent, got: True) == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.65])


def test_the_judge_waits_for_missing_mail_and_for_the_rest_of_a_line(judge: Judge, tmp_path: Path) -> None:
    before, line, after = LEDGER.partition("got 4.5 2 recovered\n")
    read(judge, tmp_path, LOG, before + line[:8])
    assert judge.lost == [2]
    assert not judge.is_complete
    read(judge, tmp_path, "", line[8:] + after)
    assert judge.is_complete


def test_the_judge_tells_where_a_lost_mail_was(judge: Judge, tmp_path: Path) -> None:
    read(judge, tmp_path, LOG, LEDGER.replace("got 4.5 2 recovered\n", "").replace("acked 4.75 2\n", ""))
    assert not judge.holds
    assert judge.diagnosis() == [
        "lost: 1",
        "  1 not pushed, after connection 1, came never",
        "  mail 2 to soak-2@agentmail.to: came at 2.000 s; not pushed, 0.500 s after a connection and 1.000 s before "
        "the next; the client got it never",
    ]


def test_the_judge_tells_how_a_mail_came_twice(judge: Judge, tmp_path: Path) -> None:
    read(judge, tmp_path, LOG, LEDGER.replace("caught-up", "got 4.7 1 recovered\ncaught-up"))
    assert not judge.holds
    assert judge.twice == [1]
    assert judge.again_after_ack == {1}
    assert judge.diagnosis()[:3] == [
        "twice: 1",
        "  1 pushed on connection 1, came live and recovered",
        "  mail 1 to soak-1@agentmail.to: came at 1.000 s, dated 7 s before that; pushed on connection 1, 0.500 s "
        "before its end (reset); the client got it live at 1.250, recovered at 3.700 in gap 1; acked at 1.500",
    ]


def test_the_judge_finds_a_mail_that_was_never_sent_or_has_another_text(judge: Judge, tmp_path: Path) -> None:
    read(judge, tmp_path, LOG, LEDGER + "got 4.8 3 live\nwrong 4.8 2\n")
    assert not judge.holds
    assert judge.invented == [3]
    assert judge.wrong == {2}
    assert "  mail 3 was never sent" in judge.diagnosis()


def test_the_judge_measures_growth_by_mail(judge: Judge, tmp_path: Path) -> None:
    samples = [f"got {at}.0 {at} live\nsample {at}.0 {1000 + 300 * at} 5000 0.1\n" for at in range(4)]
    read(judge, tmp_path, "finished 9.0\n", "".join(samples))
    assert judge.growth(lambda sample: sample.memory) == pytest.approx(300)
    assert judge.growth(lambda sample: sample.file) == 0
