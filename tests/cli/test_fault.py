"""The command `fault` says what it has done, and suggests a name for one that is mistyped."""

import re

import pytest

from tests.cli.test_emulate import KEY, run, serving
from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import Subscribed
from trio_agentmail.testing._faults.table import CHAOS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("refuse_connections", "refuse_connections: for the next one"),
        ("reject_handshakes 503 --times 3", "reject_handshakes: for the next 3"),
        ("hang_handshakes --times all", "hang_handshakes: until `fault clear`"),
        ("delay_pushes 5", "delay_pushes: for the next one"),
        ("reorder_pushes 4", "reorder_pushes: for the next 4"),
        ("slow_down 1000", "slow_down: until `fault clear`"),
        ("fail_requests 500", "fail_requests: for the next one"),
        ("outage", "outage: until `fault clear`"),
        ("outage --seconds 0.5", "outage: for 0.5 s"),
        ("chaos --seed 7", "chaos: until `fault clear`, with the seed 7"),
        ("chaos --seed 7 --seconds 30", "chaos: for 30 s, with the seed 7"),
        ("clear", "all faults are cleared"),
    ],
)
async def test_a_fault_says_how_long_it_lasts(arguments: str, said: str) -> None:
    async with serving() as served:
        assert await served.ok("fault", *arguments.split()) == said + "\n"
        await served.ok("fault", "clear")


async def test_a_fault_of_open_websockets_says_how_many_there_are() -> None:
    async with serving() as served:
        async with open_agentmail_stream(api_key=KEY, environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)
            assert await served.ok("fault", "silence_connections") == "silence_connections: 1 WebSocket\n"
            async with open_agentmail_stream(api_key=KEY, environment=served.environment):
                assert await served.ok("fault", "close_connections") == "close_connections: 2 WebSockets\n"


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
def test_a_status_that_does_not_refuse_is_bad_usage(status: str) -> None:
    result = run("fault", "reject_handshakes", "--", status)
    assert result.exit_code == 2
    assert "300<=x<=599" in result.stderr or "not a valid integer" in result.stderr


@pytest.mark.parametrize("status", ["300", "401", "599"])
async def test_a_status_that_refuses_is_a_rejection(status: str) -> None:
    async with serving() as served:
        await served.ok("fault", "reject_handshakes", status)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("trigger mesage.received", "there is no event type 'mesage.received'; did you mean 'message.received'?"),
        ("trigger message_bounced", "did you mean 'message.bounced'?"),
        ("trigger calendar.event.start", "did you mean 'calendar.event.starting'?"),
        ("fault chaos --faults drop_connections,duplicat", "there is no 'duplicat'; did you mean 'duplicate_pushes'?"),
        ("fault chaos --faults ?", f"there is no '?'; there are {', '.join(CHAOS)}"),
    ],
)
def test_a_mistyped_name_comes_with_a_suggestion(arguments: str, suggestion: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert suggestion in " ".join(result.stderr.split())
