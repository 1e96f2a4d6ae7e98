"""Numbers watched while training: what the log says of updates, updates that are skipped, averages that warm up."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import Perceptron, StopAt, same_bits, small_config

from jax_cifar import train
from jax_cifar.augment import Transform
from jax_cifar.config import Config, OptimConfig
from jax_cifar.config.files import differing_fields, from_dict, to_dict
from jax_cifar.errors import Diverged, Interrupted
from jax_cifar.optim.rules import Hyper, ema_warning, make_optimizer, update_ema
from jax_cifar.telemetry import read_metrics
from jax_cifar.training import trainer
from jax_cifar.training.many import train_many
from jax_cifar.training.state import create_train_state
from jax_cifar.training.steps import make_train_step, watch


@dataclasses.dataclass(frozen=True)
class Spoil(Transform):
    """Images that are not finite: one in the first epoch, and all from a later one on."""

    image: int = 7  # index
    epoch: int = 1000  # from here on every image

    def draw(self, key, shape, info=None):
        assert info is not None
        return (info.index == self.image) & (info.epoch == 0) | (info.epoch >= self.epoch)

    def transform(self, images, draws):
        return jnp.where(draws[:, None, None, None], jnp.nan, images)


def spoilt(transform: Spoil, limit: int, **sections: Any) -> Config:
    sections["train"] = {"skip_nonfinite": limit} | sections.get("train", {})
    return small_config(**sections, model=Perceptron(dropout=0.0), augment=(transform,))


def one_step(**sections: Any) -> Config:
    return small_config(train={"steps": 1}, schedule={"warmup": 0.0}, model=Perceptron(dropout=0.0), **sections)


def stop_after(asked: int, config: Config, folder, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: StopAt(asked))
        with pytest.raises(Interrupted):
            train(config, folder)


# The log.


def test_the_log_tells_how_far_an_update_goes(tmp_path):
    config = one_step()
    result = train(config, tmp_path / "one")
    before = train(dataclasses.replace(config, optim=OptimConfig(lr=1e-30)), tmp_path / "none").state.params
    moved = jax.tree.map(jnp.subtract, result.state.params, before)
    (line, _) = read_metrics(tmp_path / "one")
    assert line["update_ratio"] == pytest.approx(float(optax.tree.norm(moved)) / line["parameter_norm"], rel=1e-4)
    assert line["update_ratio"] > 1e-4
    assert line["nonfinite_share"] == 0
    assert "skipped" not in line


def test_the_share_of_values_that_are_not_finite_counts_entries():
    grads = {"a": jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]]), "b": jnp.array([-jnp.inf, 0.0, 0.0, 3e38])}
    assert float(watch(grads, grads)["nonfinite"]) == pytest.approx(3 / 8)
    # Finite entries whose norm is too large for float32 are finite all the same.
    assert float(watch({"b": jnp.array([0.0, 3e38])}, grads)["nonfinite"]) == 0


# Updates that are skipped.


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_skipped_update_leaves_every_bit_as_it_was_and_counts_a_step(accumulate):
    optim = OptimConfig(name="adamw", lr=0.1, ema_decay=0.9, clip_norm=1.0, accumulate=accumulate)
    config = dataclasses.replace(spoilt(Spoil(), 2), optim=optim)
    model, images, labels = Perceptron(dropout=0.0), jnp.ones((4, 32, 32, 3)), jnp.arange(4)
    variables = model.init(jax.random.key(0), images, train=False)
    optimizer = make_optimizer(optim, variables["params"])
    step = jax.jit(make_train_step(model, optimizer, config))
    hyper, key = Hyper(jnp.float32(0.1), jnp.float32(0.9), jnp.float32(0.0)), jax.random.key(1)
    start = create_train_state(dict(variables), optimizer, ema=True, skips=True)
    good, sums = step(start, images, labels, hyper, key)
    assert not same_bits(start.params, good.params)
    assert (float(sums["skipped"]), float(sums["count"])) == (0, 4)
    bad = images.at[3].set(jnp.inf)
    skipped, sums = step(good, bad, labels, hyper, key)
    assert same_bits(dataclasses.replace(skipped, step=good.step, skipped=good.skipped), good)
    assert (int(skipped.step), int(skipped.skipped)) == (2, 1)
    assert (float(sums["skipped"]), float(sums["count"]), float(sums["loss"])) == (1, 0, 0)
    assert 0 < float(sums["nonfinite"]) <= 1
    again, _ = step(skipped, images, labels, hyper, key)
    assert int(again.skipped) == 0
    assert not same_bits(again.params, good.params)
    # As many in a row as are allowed: nothing changes any more, also where the next one would be good.
    last, _ = step(skipped, bad, labels, hyper, key)
    after, _ = step(last, images, labels, hyper, key)
    assert (int(after.skipped), int(after.step)) == (2, 4)
    assert same_bits(after.params, good.params)


def test_skipped_updates_are_counted_and_told_once(tmp_path, capsys):
    result = train(spoilt(Spoil(), 3, optim={"ema_decay": 0.9}), tmp_path)
    assert result.summary["skipped_updates"] == 1
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert sum(line["skipped"] for line in lines) == 1
    (bad,) = [line for line in lines if line["skipped"]]
    assert 0 < bad["nonfinite_share"] <= 0.5  # of two updates
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["gradient_norm"]) for line in lines)
    out = capsys.readouterr().out
    assert out.count("WARNING: Updates that are not finite are skipped, the first between steps") == 1
    assert "1 updates that were not finite" in out


@pytest.mark.slow
def test_a_run_that_skips_goes_on_from_a_checkpoint_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    config = spoilt(Spoil(), 3, train={"steps_per_call": 1}, log={"every": 1})
    whole = train(config, tmp_path / "whole")
    (bad,) = [line["step"] for line in read_metrics(tmp_path / "whole") if line.get("skipped")]
    # The checkpoint lies between the skipped update and the next one: the count in a row is 1.
    stop_after(bad - 1, config, tmp_path / "parts", monkeypatch)
    assert [path.name for path in (tmp_path / "parts/checkpoints").glob("[0-9]*")] == [str(bad)]
    parts = train(config, tmp_path / "parts")
    assert same_bits(whole.state, parts.state)
    assert parts.summary["skipped_updates"] == 1


@pytest.mark.slow
def test_too_many_skipped_in_a_row_end_the_run_at_the_same_step_also_when_it_was_resumed(tmp_path, monkeypatch):
    once = {"steps_per_call": 1}
    config = spoilt(Spoil(image=-1, epoch=1), 4, log={"every": 3}, checkpoint={"every": 1}, train=once)
    told = r"updates skipped in a row as not finite became 4 between steps 9 and 12\. Step {} is kept"
    with pytest.raises(Diverged, match=told.format(6)) as caught:
        train(config, tmp_path / "whole")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "whole/summary.json").exists()
    (line,) = [line for line in read_metrics(tmp_path / "whole") if line["step"] == 9]
    assert (line["loss"], line["gradient_norm"], line["skipped"]) == (None, None, 3)
    folder = tmp_path / "parts"
    stop_after(7, config, folder, monkeypatch)
    assert (folder / "checkpoints/8").exists()  # two of the four
    with pytest.raises(Diverged, match=told.format(8)):
        train(config, folder)


@pytest.mark.slow
def test_every_run_of_a_lot_skips_for_itself():
    configs = [spoilt(Spoil(), 2, train={"seed": seed}) for seed in (0, 5)]
    alone = train_many(configs, how="sequential")
    together = train_many(configs, how="vmap")
    for one, other in zip(alone, together, strict=True):
        assert (one.diverged_at, other.diverged_at) == (None, None)
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-3)
    ended = train_many([spoilt(Spoil(image=-1, epoch=1), 2, train={"seed": seed}) for seed in (0, 5)], how="vmap")
    assert [result.diverged_at for result in ended] == [8, 8]  # of 12


def test_without_skipping_the_state_has_the_leaves_that_it_had(tmp_path):
    result = train(one_step(), tmp_path)
    assert result.state.skipped is None
    manifest = json.loads((tmp_path / "checkpoints/1/manifest.json").read_text())
    assert {name.partition("/")[0] for name in manifest["leaves"]} == {"step", "params", "batch_stats", "opt_state"}


# Averaged weights.


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_an_average_that_warms_up_by_its_definition(decay):
    weights = np.random.default_rng(0).standard_normal((60, 5))
    expected = weights[0]
    ema = jnp.asarray(weights[0], jnp.float32)
    for done, new in enumerate(weights[1:]):
        now = min(decay, (1 + done) / (10 + done))
        expected = now * expected + (1 - now) * new
        ema = update_ema(ema, jnp.asarray(new, jnp.float32), decay, jnp.int32(done))
    assert np.max(np.abs(np.asarray(ema) - expected)) < 1e-6
    # What it started from is gone, where without a warm-up it is most of it.
    without = weights[0]
    for new in weights[1:]:
        without = decay * without + (1 - decay) * new
    assert (np.max(np.abs(without - weights[0])) < 0.05) == (decay == 0.9999)
    assert np.max(np.abs(expected - weights[0])) > 0.1


def test_an_average_recorded_without_a_warm_up_had_none():
    def recorded(**optim: Any) -> dict[str, Any]:
        values = to_dict(small_config(optim=optim))
        del values["optim"]["ema_warmup"]
        return values

    assert not from_dict(recorded(ema_decay=0.9)).optim.ema_warmup
    today = to_dict(small_config(optim={"ema_decay": 0.9}))
    assert differing_fields(recorded(ema_decay=0.9), today) == ["optim.ema_warmup: False there, True here"]
    # Where nothing was averaged nothing has changed.
    assert differing_fields(recorded(), to_dict(small_config())) == []


def test_an_average_over_most_of_the_run_is_warned_of():
    long, short = OptimConfig(ema_decay=0.9999), OptimConfig(ema_decay=0.99)
    assert ema_warning(OptimConfig(), 10) is None
    assert ema_warning(long, 20_000) is None
    assert ema_warning(short, 200) is None
    assert ema_warning(short, 199) is not None
    warning = ema_warning(long, 900) or ""
    assert "averages about 10,000 updates, and the run has 900" in warning
    assert "--optim.ema_decay 0.9889" in warning
    cold = ema_warning(dataclasses.replace(long, ema_warmup=False), 900) or ""
    assert "the initial weights still make up 91% of the average" in cold


@pytest.mark.parametrize(
    ("updates", "decay"),
    [(11, "0.091"), (100, "0.9"), (900, "0.9889"), (19_000, "0.999474"), (300_000, "0.9999667"), (10**7, "0.999999")],
)
def test_the_average_that_the_warning_recommends_is_one_that_it_does_not_warn_of(updates, decay):
    warning = ema_warning(OptimConfig(ema_decay=0.99999999), updates) or ""
    assert warning.endswith(f" A tenth of the run would be --optim.ema_decay {decay}.")
    assert ema_warning(OptimConfig(ema_decay=float(decay)), updates) is None


def test_no_average_is_recommended_where_there_are_too_few_updates_for_one():
    for updates in (1, 8, 10):
        warning = ema_warning(OptimConfig(ema_decay=0.9), updates) or ""
        assert warning.endswith(" The run is too short to average over: --optim.ema_decay 0.")


def test_the_warning_of_an_average_is_given_at_the_start(tmp_path, capsys):
    train(one_step(optim={"ema_decay": 0.999}), tmp_path)
    assert capsys.readouterr().out.count("WARNING: optim.ema_decay = 0.999 averages about 1,000 updates") == 1
