"""Orders to the emulator: each says what it has done, and what is mistyped is told with a suggestion."""

import re

import pytest

from tests.cli.test_emulate import KEY, run, serving
from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import Subscribed
from trio_agentmail.testing._fake_chaos import CHAOS


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("refuse", "refuse: for the next one"),
        ("reject 503 --times 3", "reject: for the next 3"),
        ("hang --times all", "hang: until `fault clear`"),
        ("delay 5", "delay: for the next one"),
        ("reorder 4", "reorder: for the next 4 events"),
        ("slow 1000", "slow: until `fault clear`"),
        ("rest-error 500", "rest-error: for the next one"),
        ("outage", "outage: until `fault clear`"),
        ("outage --seconds 0.5", "outage: for 0.5 s"),
        ("chaos --seed 7", "chaos: until `fault clear`, with the seed 7"),
        ("chaos --seed 7 --seconds 30", "chaos: for 30 s, with the seed 7"),
        ("clear", "cleared: no faults from now on"),
    ],
)
async def test_a_fault_says_for_what_it_is(order: str, said: str) -> None:
    async with serving() as served:
        assert await served.ok("fault", *order.split()) == said + "\n"
        await served.ok("fault", "clear")


async def test_a_fault_of_open_websockets_says_how_many_there_are() -> None:
    async with serving() as served:
        async with open_agentmail_stream(api_key=KEY, environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            assert await served.ok("fault", "silent") == "silent: 1 WebSocket\n"
            async with open_agentmail_stream(api_key=KEY, environment=served.environment):
                assert await served.ok("fault", "close") == "close: 2 WebSockets\n"


async def test_chaos_without_a_seed_draws_one_and_prints_it() -> None:
    async with serving() as served:
        seeds = []
        for _ in range(2):
            [seed] = re.findall(r"with the seed (\d+)\n", await served.ok("fault", "chaos", "--seconds", "60"))
            assert f"chaos begins, with the seed {seed}" in served.told
            seeds.append(seed)
            await served.ok("fault", "clear")
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("status", ["100", "101", "200", "204", "299", "600", "999", "-1", "ok"])
def test_a_status_that_is_no_refusal_is_no_rejection(status: str) -> None:
    result = run("fault", "reject", "--", status)
    assert result.exit_code == 2
    assert "300<=x<=599" in result.stderr or "not a valid integer" in result.stderr


@pytest.mark.parametrize("status", ["300", "401", "599"])
async def test_a_status_that_refuses_is_a_rejection(status: str) -> None:
    async with serving() as served:
        await served.ok("fault", "reject", status)


@pytest.mark.parametrize(
    ("order", "suggestion"),
    [
        ("trigger mesage.received", "there is no event type 'mesage.received'; did you mean 'message.received'?"),
        ("trigger message_bounced", "did you mean 'message.bounced'?"),
        ("trigger calendar.event.start", "did you mean 'calendar.event.starting'?"),
        ("fault chaos --faults cut,duplicat", "there is no 'duplicat'; did you mean 'duplicate'?"),
        ("fault chaos --faults ?", f"there is no '?'; there are {', '.join(CHAOS)}"),
    ],
)
def test_what_is_mistyped_is_told_with_what_may_have_been_meant(order: str, suggestion: str) -> None:
    result = run(*order.split())
    assert result.exit_code == 2
    assert suggestion in " ".join(result.stderr.split())
