"""Idempotency keys: a request to send that is repeated with the same key does not send again."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import attrs

from trio_agentmail.testing._agentmail.mail.expiring import Expiring
from trio_agentmail.testing._agentmail.refusals import conflict

__all__ = ["SentOnce"]

LIFETIME = timedelta(hours=24)


@attrs.frozen
class Sent:
    """The answer to a request that had an idempotency key.

    Attributes:
        request: The path and the body of the request.
    """

    request: tuple[str, bytes]
    answer: dict[str, Any]


class SentOnce:
    """The answers to sends with an idempotency key, each kept for 24 hours."""

    def __init__(self) -> None:
        self._sent: Expiring[Sent] = Expiring(LIFETIME)

    def once(
        self, key: str | None, request: tuple[str, bytes], now: datetime, send: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Call `send` unless this key has been used, and return its answer.

        Args:
            key: The idempotency key, or `None` if the request has none.
            request: The path and the body of the request.

        Raises:
            Refusal: The key was used for another request, or `send` raised it.
        """
        sent = self._sent.get(key or "", now)
        if sent is not None:
            if sent.request != request:
                raise conflict("this Idempotency-Key was used for another request")
            return sent.answer
        answer = send()
        if key is not None:
            self._sent.put(key, Sent(request, answer), now)
        return answer
