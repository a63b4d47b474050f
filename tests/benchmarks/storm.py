"""A reconnection storm: many streams lose their server at once, and it returns on the same port a little later."""

import logging
import time
from collections import Counter
from typing import Any

import trio

from .contenders import open_stream
from .memory import start_all
from .processes import run_client, serve
from .report import Results

STREAMS = 1_000
OUTAGE = 5.0
"""Time without a listening server, in seconds."""

CASE = f"{STREAMS:,} streams, {OUTAGE:.0f} s"


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        with results.run(CASE, "stream"):
            one_storm(results)


def one_storm(results: Results) -> None:
    """Count the attempts in two ways: by the log of the streams, and by the server that has returned.

    Attempts that the server did not accept were refused while no server was listening.
    """
    with serve() as server, server.client("storm") as client:
        client.answer()  # all streams are subscribed
        lost = time.perf_counter()
        # The kernel resets the connections of the killed server and refuses new ones.
        server.process.process.kill()
        time.sleep(OUTAGE)
        with serve(port=server.port) as server_again:
            story = client.answer()
            accepted: list[float] = server_again.process.last_answer()["accepted"]
    made = sorted(at - lost for at in story["attempts"] if at > lost)
    accepted = [at - lost for at in accepted]
    back, subscribed = server_again.listening - lost, sorted(at - lost for at in story["subscribed"])
    results.note(CASE, "back up to the median stream subscribed", "s", subscribed[STREAMS // 2] - back)
    results.note(CASE, "back up to 99 % subscribed", "s", subscribed[STREAMS * 99 // 100] - back)
    results.note(CASE, "back up to the last stream subscribed", "s", subscribed[-1] - back)
    results.note(CASE, "attempts: refused", "", len(made) - len(accepted))
    results.note(CASE, "attempts: accepted", "", len(accepted))
    results.note(CASE, "attempts: most accepted in 0.1 s", "", max(histogram(accepted, 0.1).values()))
    results.charts.append(chart(made, accepted))
    details = {"back": back, "made": made, "accepted": accepted, "subscribed": subscribed}
    results.details.setdefault("storms", []).append(details)


def histogram(times: list[float], width: float = 1.0) -> Counter[int]:
    return Counter(int(at / width) for at in times)


def chart(made: list[float], accepted: list[float]) -> str:
    all_made, all_accepted = histogram(made), histogram(accepted)
    lines = ["", f"storm: attempts by seconds since the loss; the server is back after {OUTAGE:.0f} s; #: 10 accepted"]
    for second in range(max(all_made) + 1):
        bar = "#" * round(all_accepted[second] / 10)
        lines.append(f"{second:>4} s  {all_made[second]:>5} made {all_accepted[second]:>5} accepted  {bar}".rstrip())
    return "\n".join(lines)


class Attempts(logging.Handler):
    """Records when a stream tries to connect, from its log of state changes."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "connecting":
            self.times.append(time.perf_counter())


async def main(url: str) -> dict[str, Any]:
    from trio_agentmail import Disconnected, Subscribed

    attempts = Attempts()
    logger = logging.getLogger("trio_agentmail")
    logger.addHandler(attempts)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    subscribed: list[float] = []

    async def listen(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with open_stream(url) as events:
            assert isinstance(await events.receive(), Subscribed)
            task_status.started()
            assert isinstance(await events.receive(), Disconnected)
            assert isinstance(await events.receive(), Subscribed)
            subscribed.append(time.perf_counter())
            if len(subscribed) == STREAMS:
                nursery.cancel_scope.cancel()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await start_all(nursery, listen, STREAMS)
        print('"subscribed"', flush=True)
    return {"attempts": attempts.times, "subscribed": subscribed}


def client(url: str) -> dict[str, Any]:
    return trio.run(main, url)


if __name__ == "__main__":
    run_client(client)
