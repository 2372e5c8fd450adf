"""Fixtures of the whole suite."""

pytest_plugins = ["tests.servers.fixtures", "tests.postgres_server"]
