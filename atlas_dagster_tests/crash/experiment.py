"""Disturbs syncs at random and at each named point, lets them finish, and compares."""

import dataclasses
import errno
import os
import random
import signal
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

from atlas_dagster_tests.crash.laboratory import (
    ROUND,
    Difference,
    Ledger,
    Place,
    Setup,
    source_ledger,
)
from atlas_dagster_tests.crash.leftovers import leftovers
from atlas_dagster_tests.crash.seam import Point, Strike
from atlas_dagster_tests.crash.victim import KilledError, Outcome, forked

_JOURNAL = source_ledger.JOURNAL
#: Disturbances in one round, until a sync is left alone.
_MOST_IN_A_ROUND = 4
#: How often a disturbed run is given up, so that the next one is another; and how often a round
#: begins with a refresh, which then may be killed as well.
_GIVEN_UP, _REFRESHED, _KILLED_THEN = 0.2, 0.4, 0.3


class Disturbance(ABC):
    """Something that happens to syncs; ``happened`` says at which points, and how often."""

    #: What the last line calls it.
    called: str

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.happened: Counter[str] = Counter()

    def suits(self, setup: Setup) -> bool:
        return True

    @abstractmethod
    def disturb(self, ledger: Ledger, reference: Outcome) -> bool:
        """Sync ``ledger`` and disturb that; whether it got to its end all the same.

        ``reference`` is of a sync that was left alone.

        Raises:
            AssertionError: it failed for another reason.
        """


class AtPoints(Disturbance):
    """Something that happens at the named points, each as often as the others."""

    steps: tuple[str, ...] = ()

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._tried: Counter[Point] = Counter()

    @abstractmethod
    def strike(self, ledger: Ledger) -> None:
        """In the syncing process."""

    def disturb(self, ledger: Ledger, reference: Outcome) -> bool:
        points = [p for p in reference.passed if not self.steps or p.step in self.steps]
        for point in points:
            self.happened.setdefault(str(point), 0)
        point = min(points, key=self._weight)
        missed = self._tried[point] and not self.happened[str(point)]
        # Rather early: what was committed before the last disturbance does not come again.
        nth = 1 if missed else 1 + int(reference.passed[point] * self.chance.random() ** 2)
        self._tried[point] += 1
        try:
            outcome = ledger.sync(Strike(point, nth, lambda: self.strike(ledger)))
        except KilledError:
            outcome = Outcome("killed", struck=True)
        assert outcome.struck or outcome.failure is None, outcome.failure
        if outcome.struck:
            self.happened[str(point)] += 1
        return outcome.failure is None

    def _weight(self, point: Point) -> tuple[float, float]:
        return 2 * self.happened[str(point)] + self._tried[point], self.chance.random()


class Kill(AtPoints):
    """kill -9 of the step's process; three in ten times at no point in particular."""

    called = "kills"

    def disturb(self, ledger: Ledger, reference: Outcome) -> bool:
        if self.chance.random() > 0.3:
            return super().disturb(ledger, reference)
        try:
            outcome = ledger.sync(kill_after=reference.duration * self.chance.uniform(0.3, 1))
        except KilledError:
            self.happened["at random"] += 1
            return False
        assert outcome.failure is None, outcome.failure
        return True

    def strike(self, ledger: Ledger) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(AtPoints):
    """The lake's file system has not a byte left; afterwards it has again."""

    called = "full_disks"
    steps = (
        "recover",
        "open",
        "write",
        "stage",
        "prepare",
        "commit",
        "table's commit",
        "merge_committed",
    )

    def suits(self, setup: Setup) -> bool:
        return setup.destination == "delta" and setup.runner == "process"

    def disturb(self, ledger: Ledger, reference: Outcome) -> bool:
        finished = super().disturb(ledger, reference)
        _filler(ledger).unlink(missing_ok=True)
        return finished

    def strike(self, ledger: Ledger) -> None:
        try:
            with _filler(ledger).open("wb", buffering=0) as file:
                while file.write(bytes(1024 * 1024)):
                    pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _filler(ledger: Ledger) -> Path:
    return ledger.lake.parent / "filler"


class PostgresRestart(AtPoints):
    """The server that holds the tables ends at once and starts again."""

    called = "restarts"

    def suits(self, setup: Setup) -> bool:
        return setup.destination == "postgres" and setup.runner == "process"

    def strike(self, ledger: Ledger) -> None:
        assert ledger.place.server
        ledger.place.server.restart()


class ConnectorDeath(Disturbance):
    """The connector ends, in one of its ways, after some records."""

    called = "deaths"

    def suits(self, setup: Setup) -> bool:
        return setup.runner == "process"

    def disturb(self, ledger: Ledger, reference: Outcome) -> bool:
        died = ledger.died
        ledger.deaths = died + 1
        outcome = ledger.sync()
        assert ledger.died == died + 1
        self.happened["at random"] += 1
        return outcome.failure is None


class Experiment:
    """Disturbs connections, one after the other, and adds up what became of them."""

    def __init__(self, place: Place, disturbance: Disturbance, seed: int) -> None:
        self.lost = self.duplicated = self.containers = self.processes = 0
        self._place = place
        self._disturbance = disturbance
        self._seed = seed

    @property
    def total(self) -> int:
        return self._disturbance.happened.total()

    def run(self, setup: Setup, count: int) -> str:
        """Disturb a connection of ``setup`` until that has happened ``count`` times.

        Returns what there is to tell.
        """
        started = time.monotonic()
        undisturbed = self._ledger(setup, "undisturbed")
        disturbed = self._ledger(setup, "disturbed")
        reference = self._reference(undisturbed)
        syncs, enough = 0, self.total + count
        chance = self._disturbance.chance
        while self.total < enough:
            if disturbed.succeeded and chance.random() < _REFRESHED:
                self._refresh(disturbed)
            most = min(enough - self.total, chance.randint(1, _MOST_IN_A_ROUND))
            for _ in range(most):
                syncs += 1
                finished = self._disturbance.disturb(disturbed, reference)
                halves = forked(disturbed.log, disturbed.halves)
                assert not halves, f"{setup}: {halves}"
                if finished:
                    break
                if chance.random() < _GIVEN_UP:
                    disturbed.give_up()
            else:
                syncs += 1
                _succeed(disturbed)
            undisturbed.until, disturbed.until = disturbed.until, disturbed.until + ROUND
        _succeed(undisturbed)
        disturbed.until = undisturbed.until
        _succeed(disturbed)  # with nothing new: what is there must not come again
        found = forked(disturbed.log, Difference.between, disturbed, undisturbed)
        left = forked(disturbed.log, leftovers, disturbed.home, disturbed.lake)
        self.lost += found.lost
        self.duplicated += found.duplicated
        self.containers += left.containers
        self.processes += left.processes
        rows = ", ".join(f"{count} {name}" for name, count in found.rows.items())
        commit, event = (
            f"{statistics.median(reference.seconds[step]) * 1000:.1f} ms"
            for step in ("commit", "observation")
        )
        return (
            f"{setup}: {count} in {syncs} syncs and {time.monotonic() - started:.0f} s; "
            f"rows: {rows}; lost {found.lost}, duplicated {found.duplicated}; "
            f"for maintenance: {left.files} files, {left.envelopes} envelopes; "
            f"a commit took {commit}, its event {event}"
        )

    def _reference(self, ledger: Ledger) -> Outcome:
        """How a first sync goes, and one of a refresh, whose rows are held."""
        first = ledger.sync()
        ledger.refresh(_JOURNAL)
        second = ledger.sync()
        return dataclasses.replace(first, passed=first.passed | second.passed)

    def _refresh(self, ledger: Ledger) -> None:
        """Rows that are read again are the same, so nothing changes in the end."""
        chance = self._disturbance.chance
        streams = chance.sample(_JOURNAL, chance.randint(1, len(_JOURNAL)))
        dies = isinstance(self._disturbance, Kill) and chance.random() < _KILLED_THEN
        try:
            ledger.refresh(streams, kill_after=chance.uniform(0, 1) if dies else None)
        except KilledError:
            self._disturbance.happened["at random, in a refresh"] += 1

    def _ledger(self, setup: Setup, which: str) -> Ledger:
        lake = self._place.root / which / str(setup)
        return Ledger(f"{setup}_{which}", setup, self._place, lake, self._seed)


def _succeed(ledger: Ledger) -> None:
    failure = ledger.sync().failure
    assert failure is None, failure
