"""Invalid arguments of the test kit are refused at once, with a message that says what is valid."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import ReconnectPolicy
from trio_agentmail.testing import FakeAgentMail


def deliver_files(fake: Any, files: Any) -> Any:
    return fake.deliver(inbox_id="a", attachments=files)


WRONG: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda fake: fake.faults.delay_pushes(-1), ValueError, "seconds is 0 or more seconds, not -1"),
    (lambda fake: fake.faults.delay_pushes(math.inf), ValueError, "seconds is 0 or more seconds, not inf"),
    (lambda fake: fake.faults.delay_pushes("x"), TypeError, "seconds is a number of seconds, not 'x'"),
    (lambda fake: fake.faults.delay_connections(-1), ValueError, "or math.inf, not -1"),
    (lambda fake: fake.faults.delay_connections(math.nan), ValueError, "not nan"),
    (lambda fake: fake.faults.duplicate_pushes(copies=-3), ValueError, "copies is 1 to 1000, not -3"),
    (lambda fake: fake.faults.duplicate_pushes(copies=1001), ValueError, "copies is 1 to 1000, not 1001"),
    (lambda fake: fake.faults.duplicate_pushes(copies=10**30), ValueError, f"copies is 1 to 1000, not {10**30}"),
    (lambda fake: fake.faults.reorder_pushes(None), TypeError, "times is a whole number, not None"),
    (lambda fake: fake.faults.swallow_pushes(1.5), TypeError, "times is a whole number, not 1.5"),
    (lambda fake: fake.faults.fail_requests(503, times=0), ValueError, "times is 1 or more, not 0"),
    (lambda fake: fake.faults.fail_requests("503"), TypeError, "status is a whole number, not '503'"),
    (lambda fake: fake.faults.fail_requests(99), ValueError, "status is 200 to 999, not 99"),
    (lambda fake: fake.faults.reject_handshakes(101), ValueError, "status is 200 to 999, not 101"),
    (lambda fake: fake.faults.reject_handshakes(1000), ValueError, "status is 200 to 999, not 1000"),
    (lambda fake: fake.faults.reject_handshakes(True), TypeError, "status is a whole number, not True"),
    (lambda fake: fake.faults.reject_handshakes(503, body="x"), TypeError, "body is bytes, not str"),
    (
        lambda fake: fake.faults.reject_handshakes(503, headers=["TE"]),
        TypeError,
        "headers are a mapping, or pairs .* not 'TE'",
    ),
    (lambda fake: fake.faults.fail_requests(503, headers={"Retry-After": 3}), TypeError, "both str; not .*3"),
    (lambda fake: fake.faults.fail_requests(503, headers=[("a", "b", "c")]), TypeError, "pairs"),
    (
        lambda fake: fake.faults.reject_handshakes(503, headers={"X": "a\nb"}),
        ValueError,
        "are not a valid HTTP response",
    ),
    (lambda fake: fake.faults.reject_handshakes(503, headers={"X y": "a"}), ValueError, "not a valid HTTP response"),
    (lambda fake: fake.faults.reject_handshakes(503, headers={"X": "\ud800"}), ValueError, "not a valid HTTP response"),
    (lambda fake: fake.faults.reject_handshakes(304, body=b"x"), ValueError, "not a valid HTTP response"),
    (lambda fake: fake.faults.fail_requests(204, body=b"x"), ValueError, "not a valid HTTP response"),
    (
        lambda fake: fake.faults.fail_requests(200, headers={"content-length": "3"}, body=b"xxxxx"),
        ValueError,
        "not a valid HTTP response",
    ),
    (lambda fake: fake.faults.fail_requests(500, path=5), TypeError, "path is a str, not int"),
    (lambda fake: fake.faults.hang_requests(path=5), TypeError, "path is a str, not int"),
    (lambda fake: fake.faults.answer_requests(5), TypeError, "answer is a function of an httpx2.Request, not 5"),
    (lambda fake: fake.faults.fail_connections("x"), TypeError, "error is an exception, not 'x'"),
    (lambda fake: fake.faults.refuse_subscriptions(5, "x"), TypeError, "name is a str, not int"),
    (lambda fake: fake.faults.refuse_subscriptions("x", None), TypeError, "message is a str, not NoneType"),
    (lambda fake: fake.faults.close_instead_of_confirming(1000, 5), TypeError, "reason is a str, not int"),
    (lambda fake: fake.faults.close_instead_of_confirming(1000, "\ud800"), ValueError, "lone surrogate"),
    (lambda fake: fake.mail.add_inbox("a", pod_id=5), TypeError, "pod_id is a str, not int"),
    (lambda fake: fake.mail.index_after(""), TypeError, "seconds is a number of seconds, not ''"),
    (lambda fake: fake.faults.answer_connections("x"), TypeError, "data is bytes, not str"),
    (lambda fake: fake.faults.close_instead_of_confirming(70_000), ValueError, "code is 0 to 65535, not 70000"),
    (lambda fake: fake.drop_connections("1000"), TypeError, "code is a whole number, not '1000'"),
    (lambda fake: fake.drop_connections(70_000), ValueError, "code is 0 to 65535, not 70000"),
    (lambda fake: fake.faults.send_bytes("x"), TypeError, "data is bytes, not str"),
    (lambda fake: fake.send_raw({"type": "event"}), TypeError, "frame is str or bytes, not dict"),
    (lambda fake: fake.send_raw("half \ud83d"), ValueError, "frame has a lone surrogate"),
    (lambda fake: fake.faults.slow_down(0), ValueError, "bytes_per_second is more than 0, or None, not 0"),
    (lambda fake: fake.faults.slow_down(math.inf), ValueError, "more than 0, or None, not inf"),
    (lambda fake: fake.faults.delay_pongs(-1), ValueError, "or math.inf, not -1"),
    (lambda fake: fake.mail.index_after("5"), TypeError, "seconds is a number of seconds, not '5'"),
    (lambda fake: fake.chaos(1, every=0).__aenter__(), ValueError, "every is more than 0 seconds"),
    (lambda fake: fake.chaos(1, every=-1).__aenter__(), ValueError, "every is 0 or more seconds, not -1"),
    (lambda fake: fake.deliver(b"To: a\n\n", inbox_id="a", subject="x"), TypeError, "only takes inbox_id"),
    (
        lambda fake: fake.deliver(inbox_id="a", event_type="spam"),
        ValueError,
        "is one of message.received, .* not 'spam'",
    ),
    (lambda fake: fake.deliver(b"", inbox_id="a", event_type="message.bounced"), ValueError, "is one of"),
    (lambda fake: fake.deliver(inbox_id=""), ValueError, "inbox_id is empty"),
    (lambda fake: fake.deliver(b"", inbox_id=""), ValueError, "inbox_id is empty"),
    (lambda fake: fake.deliver(inbox_id=5), TypeError, "inbox_id is a str, not int"),
    (lambda fake: fake.deliver(inbox_id="a", from_=None), TypeError, "from_ is a str, not NoneType"),
    (lambda fake: fake.deliver(inbox_id="a", text=b"x"), TypeError, "text is a str, not bytes"),
    (lambda fake: fake.deliver(inbox_id="a", to=[None]), TypeError, r"to is a collection of str, not \[None\]"),
    (lambda fake: fake.deliver(inbox_id="a", timestamp="2020-01-01"), TypeError, "timestamp is a datetime, not str"),
    (lambda fake: deliver_files(fake, {"content": b""}), TypeError, "attachments is a list of dicts like .*, not"),
    (lambda fake: deliver_files(fake, b"x"), TypeError, "attachments is a list of dicts"),
    (lambda fake: deliver_files(fake, None), TypeError, "attachments is a list of dicts like .*, not None"),
    (lambda fake: deliver_files(fake, [b"x"]), TypeError, "an attachment is a dict like .*, not b'x'"),
    (lambda fake: deliver_files(fake, [{"filename": "a"}]), TypeError, "an attachment needs a content, like"),
    (lambda fake: deliver_files(fake, [{"content": "x"}]), TypeError, "the content of an attachment is bytes, not str"),
    (lambda fake: deliver_files(fake, [{"content": b"", "name": "a"}]), TypeError, "the fields content, .* not 'name'"),
    (lambda fake: deliver_files(fake, [{"content": b"", "filename": b"a"}]), TypeError, "filename is a str, not bytes"),
    (lambda fake: deliver_files(fake, [{"content": b"", "content_type": "a b"}]), ValueError, "like application/pdf"),
    (
        lambda fake: deliver_files(fake, [{"content": b"", "content_disposition": "x"}]),
        ValueError,
        "content_disposition is attachment or inline, not 'x'",
    ),
    (
        lambda fake: fake.deliver(b"To: a\n\n", inbox_id="a", attachments=[{"content": b""}]),
        TypeError,
        "only takes inbox_id",
    ),
    (lambda fake: fake.mail.send(inbox_id="a", attachments=[{}]), TypeError, "an attachment needs a content"),
    (lambda fake: fake.mail.send(inbox_id="a", subject=7), TypeError, "subject is a str, not int"),
    (lambda fake: fake.mail.label("a", "m", add="foo"), TypeError, "add is a collection of str, not 'foo'"),
    (lambda fake: fake.mail.label("a", "m", remove=[1]), TypeError, "remove is a collection of str"),
    (lambda fake: fake.mail.add_inbox(""), ValueError, "inbox_id is empty"),
    (lambda fake: fake.mail.add_inbox(None), TypeError, "inbox_id is a str, not NoneType"),
    (
        lambda fake: fake.chaos(1, faults="span").__aenter__(),
        ValueError,
        "faults are some of drop_connections, .* not span",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[f"{n}" for n in range(len(WRONG))])
async def test_an_invalid_argument_is_refused_at_once(
    call: Callable[[Any], Any], error: type[Exception], message: str, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(error, match=message):
        result = call(fake)
        if inspect.isawaitable(result):
            await result
    # And no fault has come of it.
    async with open_agentmail_stream(backend=fake):
        assert fake.record.attempts == 1


async def test_headers_may_be_a_mapping(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, headers={"Retry-After": "7"})
    async with open_agentmail_stream(backend=fake):
        assert trio.current_time() == 7


async def test_one_kind_of_chaos_need_not_be_in_a_set(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with fake.chaos(1, faults="drop_connections") as happened:
        await trio.sleep(1000)
    assert {name for _, name in happened} == {"drop_connections"}


async def test_an_error_that_ends_many_connections_does_not_grow(autojump_clock: MockClock) -> None:
    error = OSError(113, "no route")
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(max_delay=1)):
        fake.faults.fail_connections(error, times=None)
        await fake.drop_connections()
        await trio.sleep(600)
        assert fake.record.attempts > 300
    depth, traceback = 0, error.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert depth < 20


def test_faults_can_be_asked_for_before_there_is_a_run() -> None:
    fake = FakeAgentMail()
    fake.faults.slow_down(100)
    fake.faults.delay_pongs(1)
    fake.mail.index_after(5)
    fake.faults.swallow_pushes()
    fake.faults.fail_requests(503)
    fake.faults.reject_handshakes(503)
    fake.faults.silence_connections()
    fake.faults.clear()
    assert fake.explain().startswith("nothing has happened here")
