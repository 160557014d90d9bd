"""Being told to stop while a connector is waited for, by whoever runs that in a thread.

Only the thread that waits can stop its connector properly. So whoever wants it stopped sets the
signal of that thread's context, and wherever there is something to wait for, the thread looks.
"""

import threading
import time
from contextvars import ContextVar

from atlas_dagster.errors import StoppedError

#: Set by whoever wants the work in this context to stop; without one, nobody can.
stop_signal: ContextVar[threading.Event | None] = ContextVar("stop_signal", default=None)


def raise_if_stopped() -> None:
    """Raises StoppedError once this context's signal is set."""
    signal = stop_signal.get()
    if signal is not None and signal.is_set():
        raise StoppedError("Stopped, as whoever had asked for it wants it no longer.")


def pause(seconds: float) -> None:
    """Sleep, but not beyond the moment the signal is set. Raises StoppedError then."""
    signal = stop_signal.get()
    if signal is None:
        time.sleep(seconds)
    else:
        signal.wait(seconds)
        raise_if_stopped()
