# SPDX-License-Identifier: Apache-2.0
"""What the service counts. Nothing is labelled by device, audience or address: nothing here grows with the fleet."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from attestation.dice_chain import ChainCache

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """One registry per service, no globals."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "attestation_requests",
            "Requests by path and result: accepted, the verifier's code, or the problem's.",
            ["path", "code"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "attestation_request_seconds",
            "Time from a request's last header to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("attestation_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.connections = Gauge("attestation_connections", "Open connections.", registry=self.registry)
        self.reload_failures = Counter(
            "attestation_key_reload_failures", "Key files that changed and cannot be used.", registry=self.registry
        )

    def count(self, path: str, code: str, seconds: float) -> None:
        """One request. Children are looked up once for each pair: there are as many as paths and codes."""
        children = self._children.get((path, code))
        if children is None:
            children = self.requests.labels(path, code), self.seconds.labels(path)
            self._children[path, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def watch(self, *, connections: Callable[[], int], in_flight: Callable[[], int], chains: ChainCache) -> None:
        """Figures that are asked for when they are read."""
        self.in_flight.set_function(in_flight)
        self.connections.set_function(connections)
        self.registry.register(_Chains(chains))

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)


class _Chains(Collector):
    def __init__(self, chains: ChainCache) -> None:
        self._chains = chains

    def collect(self) -> Iterator[Metric]:
        looked = CounterMetricFamily(
            "attestation_chain_cache", "Chains looked for, by whether known.", labels=["result"]
        )
        looked.add_metric(["hit"], self._chains.hits)
        looked.add_metric(["miss"], self._chains.misses)
        yield looked
        yield GaugeMetricFamily("attestation_chain_cache_size", "Chains that are remembered.", len(self._chains))
