"""Fixtures of the whole suite."""

import re

import pytest
from hypothesis import settings

_KEYS = re.compile(r"coldstore-(signing-)?key-|did:|z6Mk", re.IGNORECASE)

# There are hundreds of properties, and each run tries others. `pytest --hypothesis-profile long`: what is too slow for every day.
settings.register_profile("daily", max_examples=25, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None)
settings.load_profile("daily")

pytest_plugins = ["tests.servers.fixtures", "tests.postgres_server"]


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Keys are made anew by each process that runs tests, and a test must have the same name in all of them."""
    return argname if isinstance(val, str) and _KEYS.search(val) else None
