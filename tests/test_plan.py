"""When things happen: pure arithmetic on step numbers."""

from small_runs import small_config

from jax_cifar.training.plan import Plan, make_plan


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


def test_what_happens_every_so_often_also_happens_at_the_end():
    plan = Plan(total_steps=25, steps_per_epoch=10, log_every=4, eval_every=0, checkpoint_every=7, steps_per_call=1)
    assert [step for step in range(1, 26) if plan.is_due(step, plan.checkpoint_every)] == [7, 14, 21, 25]
    assert [step for step in range(1, 26) if plan.is_due(step, plan.eval_every)] == [25]
