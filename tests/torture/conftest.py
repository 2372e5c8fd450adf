"""What the campaigns run in: one world and one server of victims for each worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coldstore.postgres.embedded import EmbeddedPostgres
from tests.torture.victim import Victims, victims
from tests.torture.world import World, world_in


@pytest.fixture(scope="session")
def world(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_in(postgres, tmp_path_factory.mktemp("torture")) as found:
        yield found


@pytest.fixture(scope="session")
def killed(world: World) -> Iterator[Victims]:
    with victims(world.folder) as found:
        yield found
