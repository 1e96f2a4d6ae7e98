"""The compiled step: order, accumulation, mixing, many steps in one call, several devices."""

import dataclasses
import functools
import logging
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import Perceptron, largest_difference, small_config, with_fields

from jax_cifar import train
from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.backend.mesh import make_mesh
from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError
from jax_cifar.optim.rules import Hyper
from jax_cifar.run.clock import Clock
from jax_cifar.run.folder import input_spec
from jax_cifar.training.keys import Purpose, purpose_key, run_key
from jax_cifar.training.losses import cross_entropy
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session, make_network, plan_schedule
from jax_cifar.training.state import initial_state
from jax_cifar.training.steps import DeviceData, epoch_order, make_gradients, make_train_steps, zero_sums


def test_an_epoch_shows_every_image_once_and_each_epoch_in_another_order():
    key = run_key(3)
    orders = [np.asarray(epoch_order(key, jnp.int32(epoch), 60, 12)) for epoch in range(3)]
    for order in orders:
        assert order.shape == (5, 12)
        assert sorted(order.ravel()) == list(range(60))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[2], np.asarray(epoch_order(key, jnp.int32(2), 60, 12)))


def test_the_images_that_do_not_fill_a_batch_are_others_in_each_epoch():
    left = [set(range(50)) - set(np.asarray(epoch_order(run_key(0), jnp.int32(e), 50, 12)).ravel()) for e in range(4)]
    assert all(len(rest) == 2 for rest in left)
    assert len({frozenset(rest) for rest in left}) > 1


def test_keys_differ_by_seed_purpose_and_count():
    keys = [purpose_key(run_key(seed), purpose, count) for seed in (0, 1) for purpose in Purpose for count in (0, 1)]
    assert len({bytes(jax.random.key_data(key)) for key in keys}) == len(keys)


def test_keys_are_what_they_were_in_every_earlier_version():
    """A number that moved would change every result, and be noticed by nothing else."""
    keys = {purpose.name: jax.random.key_data(purpose_key(run_key(3), purpose, 5)).tolist() for purpose in Purpose}
    assert keys == {
        "INIT": [786427058, 4040564219],
        "ORDER": [625863501, 109320485],
        "AUGMENT": [1829702645, 1275232839],
        "MIX": [2463012157, 2389721536],
        "DROPOUT": [779046720, 374274670],
    }


def test_a_run_is_given_its_own_seed_and_rates():
    config = small_config(
        model=Perceptron(), optim={"weight_decay": 0.01}, schedule={"name": "onecycle", "warmup": 0.0}
    )
    session = Session(config, load_data(config.data), one_run(config), Clock())
    for seed in (0, 3):
        session.start([with_fields(config, train={"seed": seed})])
        np.testing.assert_array_equal(session._order(1), epoch_order(run_key(seed), jnp.int32(1), 200, 32))
    schedule = plan_schedule(config, session.plan)
    assert np.ptp(schedule.lr) > 0 and np.ptp(schedule.momentum) > 0
    for found, expected in zip(session._tables, (*schedule, np.full(12, 0.01)), strict=True):
        np.testing.assert_array_equal(found, np.float32(expected), strict=True)


def test_many_steps_in_one_call_are_the_same_steps(finished_run, tmp_path):
    many = train(small_config(train={"steps_per_call": 3}, log={"every": 6}), tmp_path)
    assert largest_difference(finished_run.state.params, many.state.params) < 1e-4
    assert int(many.state.step) == 12


def test_mixed_batches_are_counted_by_the_share_of_the_predicted_class(tmp_path):
    mix, epoch = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}, {"epochs": 1}
    config = small_config(model=Perceptron(), mix=mix, train=epoch)
    accuracy = train(config, tmp_path).summary["train_accuracy"]
    assert 0 < accuracy < 1
    assert (accuracy * 6 * 32) % 1 > 1e-6  # shares, not whole images


def begun(config):
    """What the compiled step is made of, and given: network, state, optimizer, data."""
    splits = load_data(config.data)
    network = make_network(config, input_spec(config, splits))
    data = DeviceData(jnp.asarray(splits.train.images), jnp.asarray(splits.train.labels))
    return network, *initial_state(config, network, splits.train.images), data


@pytest.mark.parametrize("random_part", ["augment", "mix", "dropout"])
def test_the_same_images_are_treated_anew_in_every_step(random_part):
    """With a learning rate of 0 and one batch for all steps, losses differ by the random part alone."""
    config = small_config(
        model=Perceptron(dropout=0.5 if random_part == "dropout" else 0.0),
        mix={"mixup_alpha": 1.0 if random_part == "mix" else 0.0},
        augment=(RandomCrop(padding=4),) if random_part == "augment" else (),
    )
    network, state, optimizer, data = begun(config)
    train_steps = make_train_steps(network, optimizer, config, make_mesh(config))
    order, tables = jnp.tile(jnp.arange(32), (4, 1)), Hyper(jnp.zeros(4), jnp.zeros(4), jnp.zeros(4))
    step = jax.jit(functools.partial(train_steps, count=1))
    losses = []
    for _ in range(3):
        state, sums = step(state, zero_sums(config), data, order, tables, run_key(0))
        losses.append(float(sums["loss"]))
    assert len(set(losses)) == 3, losses


def test_every_update_of_a_call_is_given_its_own_rates():
    def note(updates: Any, state: Any, params: Any = None, *, hyper: Any = None):
        return jax.tree.map(jnp.zeros_like, updates), [*state[1:], jnp.stack(hyper)]

    config = small_config(model=Perceptron())
    network, state, _, data = begun(config)
    state = dataclasses.replace(state, step=jnp.int32(2), opt_state=[jnp.zeros(3)] * 4)
    optimizer = optax.GradientTransformationExtraArgs(optax.init_empty_state, note)
    four_steps = jax.jit(functools.partial(make_train_steps(network, optimizer, config, make_mesh(config)), count=4))
    order, tables = jnp.tile(jnp.arange(32), (4, 1)), Hyper(*jnp.arange(18.0).reshape(3, 6))
    state, _ = four_steps(state, zero_sums(config), data, order, tables, run_key(0))
    np.testing.assert_array_equal(state.opt_state, np.arange(18).reshape(3, 6).T[2:])


def test_every_part_of_an_accumulated_batch_is_dropped_out_anew():
    model, seen = Perceptron(dropout=0.5), []

    def noted(logits, targets):
        jax.debug.callback(seen.append, logits)
        return cross_entropy(logits, targets)

    config = small_config(model=model, optim={"accumulate": 2}, train={"loss": noted})

    @jax.jit
    def both_parts(images):
        # Every second image belongs to the other part, and is the same.
        variables, images = model.init(run_key(0), images, train=False), jnp.repeat(images, 2, axis=0)
        loss = make_gradients(model, config, differentiate=False)
        return loss(variables["params"], variables["batch_stats"], images, jnp.zeros(16, jnp.int32), run_key(2))[0]

    jax.block_until_ready(both_parts(jnp.linspace(0, 1, 8 * 8 * 8 * 3).reshape(8, 8, 8, 3)))
    jax.effects_barrier()
    assert len(seen) == 2 and not np.array_equal(*seen)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=0)] * 3)
    with pytest.raises(ConfigError, match=r"train\.batch_size = 32 does not divide over 3 devices"):
        make_mesh(small_config())


def test_after_the_first_updates_nothing_is_compiled_and_nothing_sent_but_what_has_to_be(tmp_path, monkeypatch, caplog):
    advance, stops = Session.advance, []

    def guarded(self, state, step, *arguments):
        stops.append(step)
        if step == 0:
            return advance(self, state, step, *arguments)
        # What is put onto the devices on purpose may be: the epoch's number, and that of the updates.
        with jax.transfer_guard("disallow"), jax.log_compiles(), caplog.at_level(logging.WARNING):
            return advance(self, state, step, *arguments)

    monkeypatch.setattr(Session, "advance", guarded)
    train(small_config(model=Perceptron(), augment=(RandomCrop(padding=2), HorizontalFlip())), tmp_path)
    assert stops == [0, 2, 4, 6, 8, 10]  # two epochs
    assert not [record for record in caplog.records if "ompiling" in record.getMessage()]


@pytest.mark.parametrize(("steps_per_call", "ahead"), [(None, 0), (1, 1)])
def test_where_calls_are_long_none_runs_ahead_of_the_host(steps_per_call, ahead, monkeypatch):
    config = small_config(model=Perceptron(), log={"every": 6}, train={"steps_per_call": steps_per_call})
    session = Session(config, load_data(config.data), one_run(config), Clock())
    state = session.start([config])
    session.compile(state)
    made, waited, looked = [], [session.inputs(0)[0]], []

    def recorded(step, count):
        program = session._programs[None](count)
        return lambda *given: made.append(program(*given)) or made[-1]

    def look(done):
        looked.append(done)
        assert waited[-1] is [waited[0], *(sums for _, sums in made)][done]

    monkeypatch.setattr(session, "program", recorded)
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    _, interval = session.advance(state, 0, look)
    assert (interval.end, looked) == (6, [done + 1 - ahead for done in range(5)])
