"""How many connectors run at once for all clients; the others wait, and not too many of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from atlas_dagster.interfaces.http.problems import ProblemError


class ConnectorSlots:
    """Places for connectors.

    Args:
        count: connectors at once.
        waiting: requests that may wait for a place; one more is refused.
        seconds: how long one waits at most.
    """

    def __init__(self, count: int, *, waiting: int, seconds: float) -> None:
        self._free = asyncio.Semaphore(count)
        self._count = count
        self._limit = waiting
        self._seconds = seconds
        self._waiting = 0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def one(self, alone: str | None = None) -> AsyncIterator[None]:
        """A place. Of what bears the name ``alone``, one has a place at a time.

        Raises:
            ProblemError: all are taken, and too many wait for one or this one waited too long.
        """
        # Known as long as somebody holds it or waits for it.
        turn = None if alone is None else self._turns.setdefault(alone, asyncio.Lock())
        has_to_wait = self._free.locked() or (turn is not None and turn.locked())
        if has_to_wait and self._waiting >= self._limit:
            raise ProblemError(
                "busy",
                f"{self._count} connectors are at work and {self._waiting} requests wait for "
                "their turn; ask again later.",
            )
        async with AsyncExitStack() as held:
            self._waiting += 1
            try:
                async with asyncio.timeout(self._seconds):
                    if turn is not None:
                        await held.enter_async_context(turn)
                    await held.enter_async_context(self._free)
            except TimeoutError:
                raise ProblemError(
                    "busy",
                    f"No connector's place became free within {self._seconds:g} seconds; ask again "
                    "later.",
                ) from None
            finally:
                self._waiting -= 1
            yield
