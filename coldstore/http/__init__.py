"""The admin HTTP API: requests in, `ColdStore` calls, answers out. Needs the extra `server`; nothing else of coldstore imports it."""
