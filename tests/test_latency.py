"""How long predictions take: ways timed in turn."""

import time

from jax_cifar.evaluation.latency import measure_latencies


def test_ways_are_called_in_turn_and_the_first_call_of_each_is_not_counted() -> None:
    calls: list[str] = []

    def slow_at_first() -> None:
        calls.append("a")
        time.sleep(0.2 if len(calls) == 1 else 0)

    found = measure_latencies({"a": slow_at_first, "b": lambda: calls.append("b")}, seconds=0, least=5)

    assert calls == ["a", "b"] * 6
    assert list(found) == ["a", "b"]
    assert found["a"].p95 < 0.1


def test_half_of_the_calls_take_at_most_p50() -> None:
    waits = iter([0, *[0.001] * 9, *[0.03] * 11])

    found = measure_latencies({"way": lambda: time.sleep(next(waits))}, seconds=0, least=20)["way"]

    assert 0.03 <= found.p50 <= found.p95
