"""Distributed load generation: the master assigns shares to workers and collects their records.

Locust's distributed mode transports the messages, tracks the workers, and runs the users. The assignment of users is
this project's own: Locust would move users between workers when one joins or leaves, silently changing the load.
"""

from loadtest.generator.distributed.master import Master
from loadtest.generator.distributed.worker import Outbox, Worker

__all__ = ["Master", "Outbox", "Worker"]
