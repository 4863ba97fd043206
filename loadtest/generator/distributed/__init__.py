"""Distributed load generation: the master assigns shares to workers and collects their records.

Locust's distributed mode carries the messages, tells who is there, and runs the users on the workers. Who runs which
users is ours to say: Locust would move users between workers when one comes or goes, and the load would change unsaid.
"""

from loadtest.generator.distributed.master import Master
from loadtest.generator.distributed.worker import Outbox, Worker

__all__ = ["Master", "Outbox", "Worker"]
