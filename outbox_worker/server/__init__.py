"""A real PostgreSQL of our own, for the demo and the tests, where the machine has none."""

from outbox_worker.server.cluster import LocalServer, local_server

__all__ = ["LocalServer", "local_server"]
