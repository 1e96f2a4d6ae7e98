"""`--profile`: what it measures and writes, and that a run is the same with it."""

import dataclasses
import gzip
import json

import flax.linen as nn
import pytest
from small_runs import Perceptron, loop, same_bits, small_config

from jax_cifar.compress.cost import multiply_adds
from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError
from jax_cifar.run.clock import Clock
from jax_cifar.training import profile
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session
from jax_cifar.training.step_parts import PARTS


class Linear(nn.Module):
    """One layer, compiled at once."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x[:, ::8, ::8].reshape(len(x), -1))


SMALL = {"data": {"subset": 80}}


NETWORKS = [Linear(), pytest.param(Perceptron(), marks=pytest.mark.slow)]


@pytest.mark.parametrize("network", NETWORKS, ids=["linear", "perceptron"])
def test_a_profiled_run_is_the_same_bit_for_bit_and_leaves_a_trace_and_figures(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile, "WAY_SECONDS", 0.0)
    monkeypatch.setitem(profile.MATMUL_SIZES, "cpu", 32)
    # The perceptron has statistics, dropout, mixing and averaged weights.
    more = {} if isinstance(network, Linear) else {"mix": {"mixup_alpha": 0.2}, "optim": {"ema_decay": 0.9}}
    config = small_config(model=network, **SMALL, **more)
    plain = loop.train(config, tmp_path / "plain")
    profiled = loop.train(config, tmp_path / "profiled", profile=3)
    assert same_bits(plain.state, profiled.state)
    said, folder = capsys.readouterr().out, profiled.workdir / "profile"
    assert {path.name for path in folder.iterdir()} == {"trace.json.gz", "profile.json"}
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    assert len([event for event in trace["traceEvents"] if event.get("ph") == "X"]) > 10 and "metadata" not in trace
    figures = json.loads((folder / "profile.json").read_text())
    assert tuple(figures["seconds"]) == PARTS and figures["traced"] >= 3 and figures["step"] == 0
    assert sum(figures["seconds"].values()) + figures["rest"] == pytest.approx(figures["whole"])
    assert all(figures[name] > 0 for name in ("whole", "flops", "bytes_accessed", "memory"))
    for name in (*PARTS, "rest", "whole update", "operations", "memory", "trace"):
        assert f"\n{name}" in said.replace("\n  ", "\n"), name


@pytest.mark.slow
def test_the_compiler_counts_the_operations_of_a_whole_update():
    config = small_config(model={"name": "simple_cnn", "width": 8}, optim={"accumulate": 2})
    splits = load_data(config.data)
    session = Session(config, splits, one_run(config), Clock())
    state = session.start([config])
    session.trace(state)
    forward = 2 * multiply_adds(session.network) * config.train.batch_size
    # Backward costs twice the forward pass, less the first layer's images, which need no gradient.
    assert 2.4 < profile.operations(session, state, 0) / forward < 3.3


def test_what_cannot_be_profiled_is_refused(tmp_path):
    config = small_config(model=Linear(), **SMALL)
    with pytest.raises(ConfigError, match="--profile = 0 is not allowed"):
        loop.train(config, tmp_path / "run", profile=0)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, debug_nans=True))
    with pytest.raises(ConfigError, match="--debug-nans"):
        loop.train(config, tmp_path / "run", profile=2)
    assert not [*tmp_path.iterdir()]
