"""Reading a listing page by page finds all mail that stays, whatever happens between the pages."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import httpx2
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"
START = datetime(2026, 1, 1, tzinfo=UTC)


@attrs.define
class Model:
    """The mails of the fake: for each its thread, its time, and whether it is spam."""

    fake: FakeAgentMail
    thread: dict[str, str] = attrs.field(factory=dict)
    time: dict[str, int] = attrs.field(factory=dict)
    spam: set[str] = attrs.field(factory=set)

    def messages(self) -> dict[str, int]:
        """The position of each listed message."""
        return {id_: time for id_, time in self.time.items() if id_ not in self.spam}

    def threads(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for id_, thread in self.thread.items():
            places[thread] = max(places.get(thread, 0), self.time[id_])
        hidden = {self.thread[id_] for id_ in self.spam}
        return {thread: place for thread, place in places.items() if thread not in hidden}

    async def change(self, what: str, number: int, time: int) -> None:
        message_id, thread = f"m{number}", f"t{number % 4}"
        if what == "deliver":
            # The order of two mails of the same time is unknown to a client.
            time = next(t for t in range(time, 1000) if t not in self.time.values())
            await self.fake.deliver(
                inbox_id=INBOX, message_id=message_id, thread_id=thread, timestamp=START + timedelta(seconds=time)
            )
            self.thread[message_id], self.time[message_id] = thread, time
            self.spam.discard(message_id)
        elif message_id not in self.time:
            return
        elif what == "delete":
            await self.fake.mail.delete(INBOX, message_id)
            del self.thread[message_id], self.time[message_id]
            self.spam.discard(message_id)
        elif what == "spam":
            await self.fake.mail.label(INBOX, message_id, add=["spam"])
            self.spam.add(message_id)
        else:
            await self.fake.mail.label(INBOX, message_id, remove=["spam"])
            self.spam.discard(message_id)


Change = tuple[str, int, int]
CHANGES = st.lists(
    st.tuples(st.sampled_from(["deliver", "deliver", "delete", "spam", "ham"]), st.integers(0, 11), st.integers(0, 40)),
    max_size=4,
)


@example(
    before=[(0, 0), (1, 0), (0, 0), (0, 0)],
    between=[[("deliver", 1, 0), ("deliver", 0, 0)]],
    of_threads=False,
    ascending=False,
    limit=1,
)
@given(
    before=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40)), min_size=3, max_size=12),
    between=st.lists(CHANGES, max_size=12),
    of_threads=st.booleans(),
    ascending=st.booleans(),
    limit=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_a_reader_sees_all_mail_that_stays_and_is_not_moved_behind_it(
    before: list[tuple[int, int]], between: list[list[Change]], of_threads: bool, ascending: bool, limit: int
) -> None:
    async def main() -> None:
        model = Model(FakeAgentMail())
        for number, time in before:
            await model.change("deliver", number, time)
        name = "threads" if of_threads else "messages"
        await page_through(model, name, ascending, limit, between)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def page_through(
    model: Model, name: str, ascending: bool, limit: int, between: Sequence[Sequence[Change]]
) -> None:
    places: Callable[[], dict[str, int]] = getattr(model, name)
    must_be_seen, seen = set(places()), set[str]()
    params: dict[str, Any] = {"limit": limit, "ascending": ascending}
    changes = iter(between)
    async with httpx2.AsyncClient(
        transport=model.fake.http_transport(),
        base_url="https://api.example/v0",
        headers={"Authorization": "Bearer am_key"},
    ) as client:
        while True:
            response = await client.get(f"/inboxes/{INBOX}/{name}", params=params)
            page = [thing[f"{name[:-1]}_id"] for thing in response.json()[name]]
            on_page = [places()[id_] for id_ in page]
            assert on_page == sorted(on_page, reverse=not ascending)
            seen.update(page)
            params["page_token"] = response.json().get("next_page_token")
            if params["page_token"] is None:
                break
            for change in next(changes, ()):
                await model.change(*change)
                there = places()
                # A mail that moves to the time that the last one on the page had may be on either side of it.
                last = on_page[-1]
                is_ahead = {id_ for id_ in there if (there[id_] > last if ascending else there[id_] < last)}
                must_be_seen &= there.keys() & (seen | is_ahead)
    assert must_be_seen <= seen
