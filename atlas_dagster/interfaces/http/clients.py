"""Clients that leave before they are answered."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from atlas_dagster.interfaces.http.problems import ClientLeftError

T = TypeVar("T")


async def while_connected(receive: Receive, answering: Coroutine[Any, Any, T]) -> T:
    """What ``answering`` returns; cancelled, and waited for, when its client leaves.

    Raises:
        ClientLeftError: it did.
    """
    answer = asyncio.ensure_future(answering)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientLeftError
        return answer.result()
    finally:
        answer.cancel()
        leaving.cancel()
        await asyncio.gather(answer, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Return when the client has left. The body of the request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
