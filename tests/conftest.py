"""Fixtures of the whole suite."""

from hypothesis import settings

# `pytest --hypothesis-profile long`: what is too slow for every day.
settings.register_profile("long", max_examples=10_000, deadline=None)

pytest_plugins = ["tests.servers.fixtures", "tests.postgres_server"]
