# SPDX-License-Identifier: Apache-2.0
"""What the operator counts. Nothing is labelled by device or task: nothing here grows with the fleet."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


class Metrics:
    """One registry per process, no globals."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = Counter(
            "flashjob_reconciles", "Rounds of planning, by result.", ["result"], registry=self.registry
        )
        self.seconds = Histogram("flashjob_reconcile_seconds", "Time of one round.", registry=self.registry)
        self.starts = Counter("flashjob_attempts_started", "Attempts begun.", registry=self.registry)
        self.ends = Counter(
            "flashjob_tasks_finished", "Tasks that came to their end.", ["phase", "reason"], registry=self.registry
        )
        self.cache_age = Gauge(
            "flashjob_cache_age_seconds", "Silence of the most silent watch.", registry=self.registry
        )
        self.unreadable = Gauge(
            "flashjob_unreadable_objects", "Objects that cannot be read.", ["kind"], registry=self.registry
        )

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
