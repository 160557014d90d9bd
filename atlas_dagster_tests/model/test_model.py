"""A source changes at random, syncs die and meet, others work on the tables; nothing is lost.

``make model PLAYS=5000 SEED=1`` plays longer, and the same again. In a test run the seed is a new
one each time, and printed.
"""

import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from atlas_dagster_tests.model.machine import DeltaPlay, Play, PostgresPlay

_PLAYS = int(os.environ.get("ATLAS_MODEL_PLAYS", "120"))
_SEED = int(os.environ.get("ATLAS_MODEL_SEED") or random.randrange(2**32))


def play(kind: type[Play], share: float) -> None:
    print(f"make model PLAYS={_PLAYS} SEED={_SEED}")
    limits = settings(
        max_examples=max(1, round(_PLAYS * share)),
        stateful_step_count=12,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    run_state_machine_as_test(seed(_SEED)(kind), settings=limits)


@pytest.mark.timeout(3600)
def test_plays_on_delta() -> None:
    play(DeltaPlay, 0.7)


@pytest.mark.postgres
@pytest.mark.timeout(3600)
def test_plays_on_postgres(postgres_url: dict[str, Any]) -> None:
    play(type("PostgresPlay", (PostgresPlay,), {"server": postgres_url}), 0.3)
