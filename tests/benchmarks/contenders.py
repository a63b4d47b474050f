"""The clients that are compared. Each subscribes and, after the confirmation, calls `take` with each event.

Each runs in a process of its own and imports what it needs when it is called, so that the imports and the heap of one
client do not affect another. All connect to the URL of a server, without the `/v0`. For TLS they find the certificate
through `$SSL_CERT_FILE`, so that each has its default settings there as well.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import trio

KEY = "am_benchmark"
SUBSCRIBE = '{"type":"subscribe"}'


class Consumer(Protocol):
    def take(self, event: Any) -> bool:
        """Take an event. Returns whether it was the last one."""


def open_stream(url: str) -> "AbstractAsyncContextManager[trio.MemoryReceiveChannel[Any]]":
    """Open the stream from this URL, with default settings."""
    from trio_agentmail import AgentMailEnvironment, open_agentmail_stream

    environment = AgentMailEnvironment(http=url.replace("ws", "http", 1), websockets=url)
    return open_agentmail_stream(api_key=KEY, environment=environment)


def stream(url: str, consumer: Consumer) -> None:
    """The stream of this package."""
    import trio

    take = consumer.take

    async def main() -> None:
        async with open_stream(url) as events:
            await events.receive()  # Subscribed
            async for event in events:
                if take(event):
                    break

    trio.run(main)


def loop(url: str, consumer: Consumer, decoded: bool = True) -> None:
    """The hand-written loop, or the bare transport below it, which decodes nothing."""
    import trio

    from .loop import connect, decode

    take, get = consumer.take, decode if decoded else str

    async def main() -> None:
        async with connect(url + "/v0") as websocket:
            await websocket.send_message(SUBSCRIBE)
            await websocket.get_message()
            while not take(get(await websocket.get_message())):
                pass

    trio.run(main)


def websockets_trio(url: str, consumer: Consumer) -> None:
    """The Trio client of the websockets package, with the decoding of the loop."""
    import trio
    from websockets.trio.client import connect

    from .loop import decode

    take = consumer.take

    async def main() -> None:
        async with connect(url + "/v0", max_size=2**24) as websocket:
            await websocket.send(SUBSCRIBE)
            await websocket.recv()
            while not take(decode(await websocket.recv())):
                pass

    trio.run(main)


def sdk_async(url: str, consumer: Consumer) -> None:
    """AgentMail's official SDK, on asyncio."""
    import asyncio

    from agentmail import AsyncAgentMail
    from agentmail.environment import AgentMailEnvironment
    from agentmail.websockets.types import Subscribe

    take = consumer.take

    async def main() -> None:
        client = AsyncAgentMail(api_key=KEY, environment=AgentMailEnvironment(http=url, websockets=url))
        async with client.websockets.connect() as socket:
            await socket.send_subscribe(Subscribe())
            await socket.recv()
            async for event in socket:
                if take(event):
                    break

    asyncio.run(main())


def sdk_sync(url: str, consumer: Consumer) -> None:
    """AgentMail's official SDK, synchronous."""
    from agentmail import AgentMail
    from agentmail.environment import AgentMailEnvironment
    from agentmail.websockets.types import Subscribe

    take = consumer.take
    client = AgentMail(api_key=KEY, environment=AgentMailEnvironment(http=url, websockets=url))
    with client.websockets.connect() as socket:
        socket.send_subscribe(Subscribe())
        socket.recv()
        for event in socket:
            if take(event):
                break


CONTENDERS: dict[str, Callable[[str, Consumer], None]] = {
    "stream": stream,
    "loop": loop,
    "trio-websocket": partial(loop, decoded=False),
    "websockets.trio": websockets_trio,
    "SDK async": sdk_async,
    "SDK sync": sdk_sync,
}
