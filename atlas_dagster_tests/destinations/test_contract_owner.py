"""Which deployment a connection's tables belong to, in every destination."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster_tests.destinations.stores import Database, Lake, Store, spec


def another(store: Store) -> Destination:
    """The same store, as another process sees it."""
    if isinstance(store, Database):
        return PostgresDestination(store.address)
    assert isinstance(store, Lake)
    return DeltaDestination(str(store.root))


def test_the_first_to_claim_is_the_owner_until_another_adopts(store: Store) -> None:
    assert store.destination.claim_ownership("c", "prod") == "prod"
    assert store.destination.claim_ownership("c", "prod") == "prod"
    with closing(another(store)) as dev:
        assert dev.claim_ownership("c", "dev") == "prod"
        assert dev.claim_ownership("other", "dev") == "dev"
        dev.transfer_ownership("c", "dev")
    assert store.destination.claim_ownership("c", "prod") == "dev"


def test_adopting_what_has_no_owner(store: Store) -> None:
    store.destination.transfer_ownership("c", "dev")
    assert store.destination.claim_ownership("c", "prod") == "dev"


def test_of_many_that_come_at_once_one_is_the_owner(store: Store) -> None:
    def claim_ownership(name: str) -> str:
        with closing(another(store)) as destination:
            return destination.claim_ownership("c", name)

    names = [f"deployment {n}" for n in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        owners = set(pool.map(claim_ownership, names))
    assert len(owners) == 1


def test_tables_without_an_owner_are_taken(store: Store) -> None:
    store.sync(spec(), [{"id": 1}])
    assert store.destination.claim_ownership("c", "prod") == "prod"
    assert store.rows("id") == [(1,)]
