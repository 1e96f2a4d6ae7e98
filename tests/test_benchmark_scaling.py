"""The model of many devices: its formula, what it is fed, and the page that shows it."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling import NETWORKS, Step, efficiency, latency, sums, unchanged
from jax_cifar.errors import ConfigError

ROOT = Path(__file__).parents[1]
STEP = Step("any", images=256, seconds=1e-3, parameters=1_000_000, norms=10)


def options(*arguments):
    parser = argparse.ArgumentParser()
    scaling.add_options(parser)
    return parser.parse_args(arguments)


def test_a_sum_takes_a_rings_time_and_the_latency_of_a_chain_and_a_tree():
    assert [latency(n) * 1e6 for n in (1, 8, 64, 512)] == pytest.approx([0, 15.2, 45.2, 75.2])
    assert sums(STEP, 1, NETWORKS[0]) == 0
    ring = 2 * 7 / 8 * 4e6 / 370e9
    assert sums(STEP, 8, NETWORKS[1]) == pytest.approx(31 * 15.2e-6 + ring)  # within a node no network counts
    assert sums(STEP, 64, NETWORKS[1]) == pytest.approx(31 * 45.2e-6 + 2 * 63 / 64 * 4e6 / 24e9)


def test_efficiency_falls_with_devices_with_slower_networks_and_where_there_is_less_to_do():
    fast, slow = ([efficiency(STEP, n, network) for n in (1, 8, 64, 512)] for network in NETWORKS)
    assert fast[0] == slow[0] == 1
    assert fast == sorted(fast, reverse=True) and slow == sorted(slow, reverse=True)
    assert fast[2] > slow[2] and (unchanged(STEP, 8, NETWORKS[0]) or 1) < fast[1]
    assert unchanged(STEP, 512, NETWORKS[0]) is None  # half an image each


def test_the_page_shows_what_the_model_computes_of_the_measured_steps():
    cases = list(scaling.measure(options()))
    assert [case.step.images for case in cases] == [128, 256, 256, 2000] and len(cases) == scaling.cases(options())
    assert [case.step.norms for case in cases] == [2, 8, 20, 6]
    page, results = ((ROOT / name).read_text() for name in ("docs/scaling.md", "RESULTS.md"))
    assert scaling.table(cases) in page, "docs/scaling.md is old: `benchmark.py scaling` prints its tables"
    assert all(f"{case.step.images / case.step.seconds:,.0f}" in results for case in cases[:3])
    assert f"{200 * cases[3].step.seconds:.3f} s" in results  # eight epochs
    json.dumps(scaling.as_json("scaling", cases), allow_nan=False)


def test_devices_that_fill_no_nodes_are_refused():
    with pytest.raises(ConfigError, match=r"--devices = 12 is not allowed: it must be 1 to 8, or a multiple of 8"):
        next(scaling.measure(options("--devices", "4", "12")))
