"""The space of a sweep is read as it is meant, and what cannot be trained is refused before anything is."""

import pytest
from small_runs import small_config

from jax_cifar.errors import ConfigError
from jax_cifar.lab.space import command_line, grid_of, parse_space, with_setting


def axes_of(*texts, **sections):
    return parse_space(texts, small_config(**sections))


def test_ranges_and_lists_are_read_with_the_ends_that_are_written():
    lr, momentum, width = axes_of(
        "--optim.lr = log(0.005, 0.2) optim.momentum=[0.8,0.9 , 0.95]", "model.width=int(4,16)"
    )
    assert (lr.field, lr.kind, lr.low, lr.high, lr.values) == ("optim.lr", "log", 0.005, 0.2, ())
    assert (momentum.field, momentum.values) == ("optim.momentum", ("0.8", "0.9", "0.95"))
    assert (width.field, width.kind, width.ends) == ("model.width", "int", (4, 16))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.lr=log(0.01,1,3)", ("0.01", "0.1", "1")),
        ("optim.lr=uniform(0.1,0.2,3)", ("0.1", "0.15", "0.2")),
        ("model.width=int(4,6,3)", ("4", "5", "6")),
        ("optim.lr=uniform(1.0,1.001,5)", ("1", "1.00025", "1.0005", "1.00075", "1.001")),
        ("optim.ema_decay=uniform(0.999,0.99995,3)", ("0.999", "0.999475", "0.99995")),
        ("optim.lr=log(0.000123456,0.123456,4)", ("0.000123456", "0.001235", "0.01235", "0.123456")),
        ("optim.lr=log(0.00001,0.1,3)", ("1e-05", "0.001", "0.1")),
        ("optim.nesterov=[true, false]", ("true", "false")),
        ("schedule.name=[cosine,constant]", ("cosine", "constant")),
        ("schedule.milestones=[5 8, 6 9]", ("5 8", "6 9")),
    ],
)
def test_a_number_of_points_makes_a_list_and_a_list_takes_what_the_field_takes(text, values):
    (axis,) = axes_of(text, schedule={"name": "step"} if "milestones" in text else {})
    assert axis.values == values


def test_a_grid_has_every_combination_once():
    config = small_config()
    settings = grid_of(axes_of("optim.lr=[0.1,0.2] optim.momentum=[0.5,0.9] model.width=[4,8]"), config)
    assert len({repr(setting) for setting in settings}) == len(settings) == 8
    last = with_setting(config, settings[-1])
    assert (last.optim.lr, last.optim.momentum, last.model.width) == (0.2, 0.9, 8)


def test_a_setting_is_trained_to_the_last_digit_by_the_command_that_is_printed():
    setting = {"optim.lr": 0.1 + 0.2, "schedule.milestones": "5 8"}
    assert command_line(setting) == ["--optim.lr", "0.30000000000000004", "--schedule.milestones", "5", "8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name at least one field"),
        ("optim.lr=0.1", r"cannot be read from 'optim.lr=0.1' on: it must be FIELD=log\(low,high\)"),
        ("optim.lr=[0.1] 0.2", "cannot be read from '0.2' on"),
        ("optim.lr=log(0.1,0.2)x", "cannot be read"),
        ("optim.rate=[1]", r"optim\.rate is not a field of the configuration\. Did you mean"),
        ("optim.momentun=[0.5]", r"Did you mean --optim\.momentum"),
        ("optim.lr=log(0,1)", "a logarithm needs both ends above 0"),
        ("optim.lr=uniform(0.2,0.1)", "the lower end comes first"),
        ("optim.lr=uniform(a,b)", "in numbers"),
        ("optim.lr=uniform(0.1,nan)", "in numbers"),
        ("optim.lr=uniform(0.1,0.2,1)", "at least 2 points"),
        ("model.width=int(4,6,9)", "only 3 whole numbers lie in it; give at most 3 points"),
        ("optim.lr=uniform(1.0,1.0000000000000002,3)", "give fewer points"),
        ("model.width=int(4.5,8)", "in numbers"),
        ("optim.lr=[0.1,]", r"a list is written \[value, value, ...\]"),
        ("optim.lr=log[0.1]", "a list is written"),
        ("optim.lr=(0.1,0.2)", "a range is written uniform"),
        ("optim.momentum=uniform(0.5,1)", r"optim\.momentum = 1\.0 is not allowed: .*less than 1"),
        ("model.width=log(4,8)", r"a whole number.*Say model\.width=int\(low,high\)"),
        ("model.name=[tiny_cnn,huge]", r"model\.name = 'huge' is not allowed"),
        ("optim.lr=[0.1,0.10]", "0.1 and 0.10 are the same"),
        ("optim.lr=[0.1] optim.lr=[0.2]", "a field stands there once"),
        ("optim.momentum=[0,0.9]", "Nesterov's form needs optim.momentum > 0"),
        ("train.seed=[1,2]", "the best seed is luck"),
        ("data.val_fraction=[0.1,0.2]", "compared on the same data"),
        ("train.patience=[0,2]", r"train\.patience = 2 is not allowed: the runs of a lot end together"),
        ("log.every=[1,2]", "changes nothing of what a setting is worth"),
    ],
)
def test_what_is_no_space_is_refused_in_one_message(text, message):
    with pytest.raises(ConfigError, match=message):
        axes_of(text)


def test_a_momentum_that_the_schedule_sets_is_not_searched():
    with pytest.raises(ConfigError, match="the schedule sets it"):
        axes_of("optim.momentum=[0.8,0.9]", schedule={"name": "onecycle", "warmup": 0.0})


def test_a_range_has_no_grid():
    with pytest.raises(ConfigError, match=r"log\(0\.1,0\.2,5\) takes five values of it"):
        grid_of(axes_of("optim.lr=log(0.1,0.2)"), small_config())


def test_a_combination_that_is_refused_stops_a_grid_before_it_begins():
    config = small_config(optim={"momentum": 0.9, "nesterov": False})
    axes = axes_of("optim.nesterov=[false,true] optim.momentum=[0.9,0]", optim={"nesterov": False})
    with pytest.raises(ConfigError, match="Nesterov"):
        grid_of(axes, config)
