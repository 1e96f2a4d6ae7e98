"""Starting from another run's weights, and code that is told what happens in a run."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import Perceptron, same_bits, small_config

from jax_cifar import Callback
from jax_cifar.data import Splits, load_data
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.lab.results import named_runs
from jax_cifar.lab.runs import experiments
from jax_cifar.models.network import Network
from jax_cifar.run.folder import CHECKPOINTS, input_spec
from jax_cifar.run.reading import read_variables
from jax_cifar.telemetry import read_metrics
from jax_cifar.training.loop import train
from jax_cifar.training.session import make_network
from jax_cifar.training.start import starting_weights

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(small_config(train={"epochs": 1}, optim={"ema_decay": 0.5}), folder)
    return folder


def network_of(config, classes: int = 10) -> Network:
    splits = load_data(small_config().data)
    if classes < 10:
        few = splits.train.take(np.flatnonzero(splits.train.labels < classes))
        splits = Splits("few", few, few, None, splits.label_names[:classes])
    return make_network(config, input_spec(config, splits))


@pytest.mark.slow
def test_a_run_of_the_same_classes_starts_from_all_weights(finished):
    said = []
    start = starting_weights(finished, network_of(small_config()), small_config(), said.append)
    found = read_variables(finished / CHECKPOINTS)
    assert found is not None and same_bits(jax.device_get(start), found[1])  # the averaged ones
    assert said == [f"starting from step 6 of {finished}: all weights"]


def test_with_other_classes_the_head_is_fresh_and_said_so(finished):
    said, config = [], small_config()
    start = starting_weights(finished, network_of(config, classes=3), config, said.append)
    found = read_variables(finished / CHECKPOINTS)
    assert start is not None and found is not None
    assert start["params"]["fc"]["kernel"].shape == (256, 3)
    assert same_bits(jax.device_get(start["params"]["conv1"]), found[1]["params"]["conv1"])
    assert same_bits(jax.device_get(start["batch_stats"]), found[1]["batch_stats"])
    assert said == [
        f"starting from step 6 of {finished}: all but the head (params/fc/bias, params/fc/kernel), whose classes differ"
    ]


def test_training_goes_on_from_the_weights(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax_cifar.training.loop.known_figure", lambda config: "98 % in a minute")
    config = small_config(optim={"lr": 1e-12}, schedule={"name": "constant", "warmup": 0.0}, train={"steps": 1})
    start = starting_weights(finished, network_of(config), config, print)
    assert start is not None
    went_on, fresh = (train(config, tmp_path / name, init_from=where) for name, where in (("a", finished), ("b", None)))
    kernels = [np.asarray(result.state.params["conv1"]["kernel"]) for result in (went_on, fresh)]
    np.testing.assert_allclose(kernels[0], start["params"]["conv1"]["kernel"], atol=1e-6)
    assert np.abs(kernels[1] - kernels[0]).max() > 1e-2
    # What the experiment is known to reach is not for one that starts elsewhere.
    assert capsys.readouterr().out.count("reaches     98 % in a minute\n") == 1

    runs = named_runs([str(tmp_path / name) for name in "ab"], lambda *_: None)
    assert [one.init_from for one in runs] == [str(finished), None] and len(experiments(runs)) == 2
    with pytest.raises(CheckpointError, match=r"was begun from its network's own weights, not from those to start"):
        train(config, tmp_path / "b", init_from=finished)
    (tmp_path / "a/summary.json").unlink()  # as of one that was stopped on the way
    assert train(config, tmp_path / "a").summary["init_from"] == str(finished)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_weights_in_half_precision_are_trained_in_float32(dtype, tmp_path):
    config = small_config(model=Perceptron(), train={"steps": 4})
    network = network_of(config)
    fresh = network.model.init(jax.random.key(0), jnp.zeros((1, *network.spec.image_shape)), train=False)
    half = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), fresh)
    start = starting_weights(half, network, config, print)
    assert same_bits(start, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), half))
    assert train(config, tmp_path / "run", init_from=half).summary["steps"] == 4


def test_what_cannot_be_started_from_is_refused_and_leaves_nothing(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"holds another network: batch_stats/bn1/mean \(4,\) there, \(8,\) here"):
        train(small_config(model={"width": 8}), tmp_path / "run", init_from=finished)
    with pytest.raises(CheckpointError, match="nowhere: there is no checkpoint"):
        train(small_config(), tmp_path / "run", init_from=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


class Listening(Callback):
    """Keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails: str = "") -> None:
        self.heard, self.fails = [], fails

    def _hear(self, event, what):
        self.heard.append((event, what))
        if event == self.fails:
            json.loads("no connection")

    def on_log(self, record):
        self._hear("on_log", record)

    def on_epoch(self, record):
        self._hear("on_epoch", record)

    def on_end(self, result):
        self._hear("on_end", result)


class Listener:
    pass


@pytest.mark.parametrize("callbacks", [Listener(), [Listener], 3], ids=["one", "a class", "a number"])
def test_what_is_no_list_of_callbacks_is_refused_at_once(callbacks, tmp_path):
    with pytest.raises(ConfigError, match=r"callbacks = .* must be a list of objects, such as \[MyCallback\(\)\]"):
        train(small_config(), tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_a_callback_is_told_of_each_line_each_epoch_and_the_end_and_one_that_fails_is_a_warning(tmp_path, capsys):
    events = ("on_log", "on_epoch", "on_end")
    failing, listening = [Listening(event) for event in events], Listening()
    config = small_config(model=Perceptron(), data={"val_fraction": 0.1})
    result = train(config, tmp_path, callbacks=[*failing, object(), listening])
    printed = capsys.readouterr().out
    for event in events:
        told = rf"the callback Listening\.{event} failed with JSONDecodeError: .*? \(\S+test_start\.py, line \d+\)"
        assert len(re.findall(told, " ".join(printed.split()))) == 1
    assert result.summary["steps"] == 12
    assert all(len(each.heard) == len(listening.heard) for each in failing)
    lines = [what for event, what in listening.heard if event == "on_log"]
    assert lines == read_metrics(tmp_path)
    epochs = [what for event, what in listening.heard if event == "on_epoch"]
    assert [record["step"] for record in epochs] == [6, 12]
    assert epochs[-1]["eval_accuracy"] == lines[-2]["accuracy"] and epochs[-1]["split"] == "validation"
    assert listening.heard[-1] == ("on_end", result)


class Typed(Perceptron):
    """Computes in float32, whatever it is told."""

    dtype: Any = None


def test_a_run_warns_of_a_type_of_its_network_that_is_not_used(tmp_path, capsys):
    config = small_config(train={"steps": 1}, schedule={"warmup": 0.0}, model=Typed(dtype=jnp.bfloat16))
    train(config, tmp_path)
    assert capsys.readouterr().out.count("WARNING: Typed.dtype = bfloat16 is not used") == 1
