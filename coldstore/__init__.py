"""coldstore: the cold store for the long-term memory that AI agents keep in Postgres."""

__version__ = "0.1.0"
