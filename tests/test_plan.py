"""When things happen: pure arithmetic on step numbers."""

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Perceptron, small_config

from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError
from jax_cifar.run.clock import Clock
from jax_cifar.training.plan import MOST_STEPS, Plan, make_plan
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session

few = settings(max_examples=50, derandomize=True, deadline=None)
every = st.just(0) | st.integers(1, 40) | st.floats(1, 40)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan of up to 100 steps, of which a part or all may be on smaller images."""
    total = draw(st.integers(1, 100))
    ends = sorted(draw(st.sets(st.integers(1, total), max_size=3)) | {total})
    return Plan(
        total_steps=total,
        steps_per_epoch=draw(st.integers(1, 50)),
        log_every=draw(st.integers(1, 60)),
        eval_every=draw(every),
        checkpoint_every=draw(every),
        steps_per_call=draw(st.none() | st.integers(1, 30)),
        phases=tuple((8 * (i + 1), end) for i, end in enumerate(ends)) if draw(st.booleans()) else (),
    )


def dues(every: float, total: int) -> set[int]:
    """The steps nearest to the multiples of an interval, by the definition; of two as near, the later."""
    return {math.floor(k * every + 0.5) for k in range(1, total + 2)} if every else set()


def is_stop(plan: Plan, step: int) -> bool:
    """Whether anything but training happens at a step, by the definition."""
    return (
        plan.is_log_due(step)
        or step % plan.steps_per_epoch == 0
        or any(step in dues(every, plan.total_steps) for every in (plan.eval_every, plan.checkpoint_every))
        or step in [end for _, end in plan.phases]
    )


def walk(plan: Plan, step: int = 0) -> list[int]:
    """The steps after every call, from `step` to the end."""
    steps = []
    while step < plan.total_steps:
        step += plan.next_call(step)
        steps.append(step)
    return steps


def test_calls_stop_at_every_log_line_epoch_evaluation_and_checkpoint():
    plan = Plan(total_steps=25, steps_per_epoch=10, log_every=4, eval_every=0, checkpoint_every=7, steps_per_call=100)
    assert walk(plan) == [4, 7, 8, 10, 14, 18, 20, 21, 24, 25]
    assert [step for step in range(1, 26) if plan.is_log_due(step)] == [4, 8, 10, 14, 18, 20, 24, 25]


def test_all_epochs_make_calls_of_the_same_few_sizes():
    plan = Plan(
        total_steps=3900, steps_per_epoch=390, log_every=50, eval_every=390, checkpoint_every=390, steps_per_call=50
    )
    assert plan.calls() == {(None, 40), (None, 50)}


def test_a_run_resumed_anywhere_makes_the_same_calls():
    plan = Plan(total_steps=60, steps_per_epoch=17, log_every=10, eval_every=17, checkpoint_every=0, steps_per_call=4)
    whole = walk(plan)
    for step in whole:
        assert walk(plan, step) == [s for s in whole if s > step]
    assert plan.calls() == {(None, b - a) for a, b in zip([0, *whole], whole, strict=False)}


def test_lengths_in_epochs_become_whole_steps():
    plan = make_plan(small_config(train={"epochs": 2.5}, eval={"every": 0.5}), images=200, backend="cpu")
    assert (plan.steps_per_epoch, plan.total_steps, plan.eval_every, plan.steps_per_call) == (6, 15, 3, None)
    assert make_plan(small_config(train={"steps": 5}), images=200, backend="cpu").total_steps == 5
    assert make_plan(small_config(), images=200, backend="gpu").steps_per_call == 2


def test_lines_that_are_never_due_come_at_the_ends_of_epochs():
    rare, never = (make_plan(small_config(log={"every": every}), 200, "cpu") for every in (200, 10**10))
    assert never.calls() == rare.calls()


def test_what_happens_every_so_often_also_happens_at_the_end():
    plan = Plan(total_steps=25, steps_per_epoch=10, log_every=4, eval_every=0, checkpoint_every=7, steps_per_call=1)
    assert [step for step in range(1, 26) if plan.is_due(step, plan.checkpoint_every)] == [7, 14, 21, 25]
    assert [step for step in range(1, 26) if plan.is_due(step, plan.eval_every)] == [25]


@pytest.mark.parametrize("share", [0.5, 0.1, 1 / 3, 0.7, 1])
def test_what_happens_every_so_many_epochs_stays_at_the_nearest_steps(share):
    config = small_config(train={"epochs": 20, "batch_size": 40}, eval={"every": share}, data={"subset": None})
    plan = make_plan(config, images=21 * 40, backend="cpu")
    evaluated = [step for step in range(1, 20 * 21) if plan.is_due(step, plan.eval_every)]
    assert len(evaluated) == math.ceil(20 / share - 1e-9) - 1
    for k, step in enumerate(evaluated, start=1):
        assert abs(step - k * share * 21) <= 0.5 + 1e-9
    if share == 0.5:
        assert evaluated[:6] == [11, 21, 32, 42, 53, 63]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"epochs": 1e9},
            r"train\.epochs = 1000000000\.0 is not allowed: a run has at most 10,000,000 updates, here 1",
        ),
        ({"epochs": 1e38}, r"train\.epochs = 1e\+38"),
        ({"steps": 10**30}, r"train\.steps = 1000000000000000000000000000000 is not allowed"),
    ],
)
def test_a_run_too_long_for_its_tables_is_refused_by_the_field_that_says_so(train, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(small_config(train=train), images=200, backend="cpu")


def test_the_calls_of_the_longest_run_are_known_at_once():
    begin = time.perf_counter()
    config = small_config(train={"steps": MOST_STEPS}, eval={"every": 1e38}, checkpoint={"every": 0.1})
    plan = make_plan(config, images=200, backend="gpu")
    assert plan.calls() == {(None, 1)} and plan.next_stop(MOST_STEPS - 7) == MOST_STEPS - 6
    assert time.perf_counter() - begin < 10  # walking from stop to stop takes a minute


@few
@given(plan=plans(), affordable=st.integers(1, 100))
def test_no_call_goes_over_a_stop_and_every_stop_is_met(plan, affordable):
    step = 0
    while step < plan.total_steps:
        stop = plan.next_stop(step)
        assert stop == next(later for later in range(step + 1, plan.total_steps + 1) if is_stop(plan, later))
        count = plan.next_call(step, affordable)
        assert 1 <= count <= min(plan.steps_per_call or affordable, stop - step)
        step += count
    assert step == plan.total_steps


@few
@given(plans())
def test_every_call_is_among_those_that_are_compiled_beforehand(plan):
    whole = [0, *walk(plan)]
    made = {(plan.side_at(step), later - step) for step, later in itertools.pairwise(whole)}
    assert plan.calls() == made
    assert {side for side, _ in made} == ({side for side, _ in plan.phases} or {None})


@few
@given(plans())
def test_the_work_is_every_update_by_its_pixels_and_every_evaluation_counts_once(plan):
    last = plan.side_at(plan.total_steps) or 1
    costs = [((plan.side_at(step) or 1) / last) ** 2 for step in range(plan.total_steps)]
    evaluated = [plan.is_due(step, plan.eval_every) for step in range(1, plan.total_steps + 1)]
    for step in range(plan.total_steps + 1):
        assert plan.work(step) == pytest.approx(sum(costs[:step]))
        assert plan.evaluations(step) == sum(evaluated[:step])


@few
@given(st.integers(10, 300), st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_every_image_side_has_its_share_of_the_steps(total, weights):
    shares = tuple((8 * (i + 1), weight / sum(weights)) for i, weight in enumerate(weights))
    plan = make_plan(small_config(train={"steps": total, "resolutions": shares}), images=200, backend="cpu")
    seen = [plan.side_at(step) for step in range(total)]
    assert seen == sorted(seen, key=lambda side: side or 0)
    for side, share in shares:
        assert abs(seen.count(side) - share * total) <= 1


@pytest.mark.parametrize(
    ("every", "keep", "best", "states"),
    [(5, 2, False, 3), (5, 2, True, 4), (0, 2, False, 1), (0, 2, True, 3), (50, 2, False, 2), (30, 9, False, 4)],
)
def test_the_states_that_lie_on_the_disk_at_once_are_those_kept_and_one_being_written(every, keep, best, states):
    plan = Plan(100, 10, log_every=10, eval_every=10, checkpoint_every=every, steps_per_call=None)
    assert plan.states_at_once(keep, best) == states


def test_a_run_counts_an_evaluation_once_it_is_done_and_the_views_of_the_last():
    config = small_config(model=Perceptron(), eval={"tta": "mirror"}, train={"epochs": 2})
    splits = load_data(config.data)
    session = Session(config, splits, one_run(config), Clock())
    images = {
        step: [round((session.work(step, done) - step) * 3 * config.train.batch_size) for done in (False, True)]
        for step in (5, 6, 7, 12)
    }
    one = len(splits.test)
    assert images == {5: [0, 0], 6: [0, one], 7: [one, one], 12: [one, 3 * one]}
