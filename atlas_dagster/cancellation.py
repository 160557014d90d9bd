"""A stop signal for the thread that waits for a connector.

Only the waiting thread can stop its connector properly. So another thread sets the signal in the
context of the waiting thread, which checks the signal at every place where it waits.
"""

import threading
import time
from contextvars import ContextVar

from atlas_dagster.errors import StoppedError

#: Another thread sets this event to stop the work of this context; None if no thread may do so.
stop_signal: ContextVar[threading.Event | None] = ContextVar("stop_signal", default=None)


def raise_if_stopped() -> None:
    """Raise StoppedError if this context's signal is set."""
    signal = stop_signal.get()
    if signal is not None and signal.is_set():
        raise StoppedError("Stopped: the caller has cancelled or closed it.")


def pause(seconds: float) -> None:
    """Sleep for this time. Raise StoppedError as soon as the signal is set."""
    signal = stop_signal.get()
    if signal is None:
        time.sleep(seconds)
    else:
        signal.wait(seconds)
        raise_if_stopped()
