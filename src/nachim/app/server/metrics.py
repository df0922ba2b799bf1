"""Counters of a server, in the format that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nachim.infer.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

PATHS = (
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"),
    *("/health", "/metrics", "/openapi.json"),
)


class Metrics:
    """What a server counts; a registry of its own, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        given = {"registry": self.registry}
        self.requests = Counter("nachim_requests", "Requests answered.", ["path", "status"], **given)
        self.prompt_tokens = Counter("nachim_prompt_tokens", "Tokens of prompts that were taken in.", **given)
        self.generated_tokens = Counter("nachim_generated_tokens", "Tokens that were generated.", **given)
        self.left = Counter("nachim_disconnects", "Requests whose client left before the end.", **given)
        self.samples = Gauge("nachim_samples", "Samples that are queued or running.", **given)
        self.pages = Gauge("nachim_cache_pages", "Pages of the cache, by who has them.", ["by"], **given)
        told = "Seconds from a request's arrival to its first token."
        self.first_token = Histogram("nachim_first_token_seconds", told, buckets=SECONDS, **given)
        told = "Seconds from a request's arrival to its end."
        self.seconds = Histogram("nachim_request_seconds", told, buckets=SECONDS, **given)

    def answered(self, path: str, status: int) -> None:
        """Count an answer; paths that are not served are counted as one, for anybody can make them up."""
        self.requests.labels(path if path in PATHS else "other", status).inc()

    def hold(self, pages: dict[str, int]) -> None:
        """Set the gauges of the cache to what `pages_of` said."""
        for by, count in pages.items():
            self.pages.labels(by).set(count)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


def pages_of(engine: Engine) -> dict[str, int]:
    """Pages of the cache that nobody has, that only kept prefixes have, and that samples have."""
    pools, kept = engine.store.pools, engine.scheduler.prefixes.blocks.values()
    total = sum(len(pool.owners) for pool in pools.values())
    free = sum(pool.free for pool in pools.values())
    held = {(group, page) for block in kept for group, pages in block.pages.items() for page in pages if page >= 0}
    prefixes = sum(pools[group].owners[page] == 1 for group, page in held)
    return {"free": free, "prefixes": prefixes, "samples": total - free - prefixes}
