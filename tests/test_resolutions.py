"""Training at low resolution first: `train.resolutions`."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import StopAt, same_bits, small_config

from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError, Interrupted
from jax_cifar.models.network import downsample
from jax_cifar.run.folder import input_spec
from jax_cifar.training import session, trainer
from jax_cifar.training.loop import train
from jax_cifar.training.plan import make_plan
from jax_cifar.training.session import Session

SPEEDRUN = {"name": "speedrun_net", "width": 4, "convs_per_group": 1}


def config_of(*resolutions: tuple[int, float], **train_fields):
    return small_config(model=SPEEDRUN, train={"resolutions": resolutions, **train_fields})


def test_a_call_after_the_images_have_grown_takes_no_longer_than_one_before():
    session = Session.__new__(Session)
    session._afford(16, 16, 40.0)
    assert session._affordable == 40
    session._afford(32, 16, 40.0)
    assert session._affordable == 10
    session._afford(32, 16, 2.0)
    assert session._affordable == 1


def test_the_plan_changes_the_side_at_the_shares_and_stops_there():
    plan = make_plan(config_of((16, 0.3), (20, 0.2), (32, 0.5)), images=200, backend="cpu")  # 12 steps
    assert [plan.side_at(step) for step in range(13)] == [16] * 4 + [20] * 2 + [32] * 7
    assert [plan.next_stop(step) for step in (0, 2, 4, 6)] == [2, 4, 6, 8]
    assert make_plan(config_of(), images=200, backend="cpu").side_at(3) is None
    # Three a call, cut where the images change: one program for each side and number.
    plan = make_plan(config_of((16, 0.3), (32, 0.7), steps_per_call=3), images=200, backend="cpu")
    assert plan.calls() == {(16, 2), (32, 2)}


seen: dict[bool, set[int]] = {True: set(), False: set()}


class Spy(nn.Module):
    """A network for images of every side, which keeps what sides it saw in training and in evaluation."""

    @nn.compact
    def __call__(self, images, train):
        seen[train].add(images.shape[1])
        return nn.Dense(10)(images.mean((1, 2)))


def test_every_update_sees_its_side_and_the_last_side_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "check_network", lambda *_: 0)  # it tries every side, in shapes alone
    sides = []
    advance = Session.advance

    def watched(self, state, step, stop):
        sides.append(self.plan.side_at(step))
        return advance(self, state, step, stop)

    monkeypatch.setattr(Session, "advance", watched)
    result = train(small_config(model=Spy(), train={"resolutions": ((16, 0.5), (24, 0.5))}), tmp_path)
    assert seen == {True: {16, 24}, False: {24}}
    assert sides == [16] * 3 + [24] * 3  # a log line every 2 of 12 steps
    assert int(result.state.step) == 12


@pytest.mark.slow
def test_a_run_stopped_between_two_sides_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = dataclasses.replace(config_of((16, 0.5), (24, 0.5)))
    whole = train(config, tmp_path / "whole")
    monkeypatch.setattr(trainer, "StopRequest", lambda: StopAt(6))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts")
    monkeypatch.undo()
    assert same_bits(train(config, tmp_path / "parts").state, whole.state)


def test_downsampling_keeps_constant_images_and_the_mean():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((2, 32, 32, 3), np.float32))
    assert downsample(images, None) is images
    np.testing.assert_allclose(downsample(jnp.full((1, 32, 32, 3), 0.7), 20), 0.7, rtol=1e-6)
    halved = jax.device_get(downsample(images, 16))
    np.testing.assert_allclose(halved.mean(), images.mean(), rtol=1e-2)


@pytest.mark.parametrize(
    ("resolutions", "message"),
    [
        (((0, 1.0),), "must be at least 1"),
        (((16, 1.5),), "must lie between 0 and 1"),
        (((16, 0.5), (32, 0.4)), "must add up to 1"),
    ],
)
def test_impossible_resolutions_are_refused(resolutions, message):
    with pytest.raises(ConfigError, match=message):
        config_of(*resolutions)


def test_a_network_of_one_size_refuses_several(tmp_path):
    config = small_config(train={"resolutions": ((16, 0.5), (32, 0.5))})
    with pytest.raises(ConfigError, match=r"train\.resolutions needs a network whose parameters fit every image side"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_are_never_enlarged():
    config = config_of((40, 1.0))
    with pytest.raises(ConfigError, match="the images have 32 pixels a side"):
        input_spec(config, load_data(config.data))
