"""Configurations: values out of range, the JSON form that a run keeps, and every config that is shipped."""

import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
from config_strategies import TRANSFORMS, configs
from flax import linen as nn
from hypothesis import HealthCheck, given, settings

from jax_cifar import load_config
from jax_cifar.augment import RandomCrop
from jax_cifar.config import Config, DataConfig, OptimConfig, ScheduleConfig
from jax_cifar.config.files import apply_overrides, differing_fields, from_dict, known_figure, to_dict
from jax_cifar.config.modules import running
from jax_cifar.config.placeholder import Recorded
from jax_cifar.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
BASE = Config(name="base")


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(configs())
def test_json_keeps_every_field_and_every_transform(config):
    assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_json_keeps_each_transform_of_the_library(transform):
    config = dataclasses.replace(BASE, augment=(transform,))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "make",
    [
        lambda: OptimConfig(lr="0.1"),  # type: ignore[arg-type]
        lambda: OptimConfig(nesterov=1),  # type: ignore[arg-type]
        lambda: DataConfig(subset=True),
        lambda: DataConfig(dir=""),
        lambda: ScheduleConfig(milestones=[1, 2]),  # type: ignore[arg-type]
        lambda: Config(name="a b"),
        lambda: Config(name="x", optim="sgd"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_or_an_empty_name_in_a_config_file_is_refused(make):
    with pytest.raises(ConfigError, match="is not allowed"):
        make()


def experiments(path):
    """What `load_config` takes for every experiment that a config file describes."""
    with running(path) as module:
        annotation = typing.get_type_hints(module.get_config).get("variant")
    return [f"{path}:{variant}" for variant in typing.get_args(annotation)] or [path]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_says_what_it_claims_and_survives_json(path):
    docstring = path.read_text().split('"""')[1]
    assert f"configs/{path.name}" in docstring
    assert re.search(r"\d\.\d\d %|not measured yet", docstring, re.IGNORECASE)
    for experiment in experiments(path):
        config = load_config(experiment)
        assert config.name.startswith(path.stem)
        again = from_dict(json.loads(json.dumps(to_dict(config))))
        assert to_dict(again) == to_dict(config)  # a network of its own is a name there


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_config_is_known_to_reach_is_a_row_of_the_results_and_is_told(path):
    results = (CONFIGS[0].parents[1] / "RESULTS.md").read_text()
    told = {config.name: known_figure(config) for config in map(load_config, experiments(path))}
    with running(path) as module:
        assert {name: figure for name, figure in told.items() if figure} == getattr(module, "REACHES", {})
    for name, figure in told.items():
        for value in re.findall(r"(\d+\.\d\d) %", figure or ""):
            assert any(f"| {name} " in row and f"{value}%" in row for row in results.splitlines()), figure


def test_json_names_transforms():
    config = dataclasses.replace(BASE, augment=(RandomCrop(padding=3),))
    assert to_dict(config)["augment"][0] == {"transform": "RandomCrop", **dataclasses.asdict(RandomCrop(padding=3))}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": 3}, r"optim = 3 is not allowed: it must be a table of fields"),
        ({"optim": [1]}, r"optim = \[1\] is not allowed"),
        ({"model": "resnet18"}, r"model = 'resnet18' is not allowed: it must be a table"),
        ({"optim": {"speed": 1}}, r"optim\.speed is not a field of the configuration of this version"),
        ({"speed": 1}, r"speed is not a field of the configuration of this version"),
        ({"loaded_as": "os"}, r"loaded_as is not a field"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr = 'fast' is not allowed: it must be a number"),
        ({"optim": {"name": {"function": 3}}}, r"optim\.name = .* it must name the function and where it is from"),
        ({"model": {"network": "Net"}}, r"model = .* it must name the network and where it is from"),
        ({"augment": 3}, r"augment = 3 is not allowed"),
        ({"augment": ["RandomCrop"]}, r"augment = \('RandomCrop',\) is not allowed"),
        ({"augment": [{"transform": "os.system"}]}, r"The transform os\.system is not part of jax_cifar\.augment"),
        ({"augment": [{"transform": "compose", "transforms": []}]}, r"The transform compose is not part of"),
        (
            {"augment": [{"transform": "RandomCrop", "gone": 1}]},
            r"augment\[0\]: RandomCrop has no field gone in this v",
        ),
        ({"augment": [{"transform": "RandomCrop", "padding": -1}]}, r"padding = -1 is not allowed"),
        ({"augment": [{"transform": "OneOf"}]}, r"augment\[0\]: OneOf cannot be made from what is recorded"),
    ],
)
def test_a_record_that_this_version_cannot_read_is_one_message(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"name": "x", **values})


def test_a_record_that_is_no_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"the configuration = 3 is not allowed: it must be a table of sections"):
        from_dict(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"name = None is not allowed"):
        from_dict({})


def test_a_record_of_an_earlier_version_is_completed():
    values = to_dict(BASE)
    del values["model"]["whiten_bias"], values["eval"], values["augment"]
    assert from_dict(values) == BASE
    # What did nothing was written too, and is no reason to refuse the run.
    values["optim"] |= {"name": "adam", "momentum": 0.5, "nesterov": True}
    values["schedule"] |= {"name": "constant", "pct_start": 0.9}
    values["model"]["stem"] = "imagenet"
    assert from_dict(values).optim == OptimConfig(name="adam")
    assert from_dict(values).schedule == ScheduleConfig(name="constant")
    assert from_dict(values).model == BASE.model
    assert differing_fields(values, to_dict(from_dict(values))) == []


def test_a_network_is_a_linen_module_and_neither_its_class_nor_another_object():
    class Net(nn.Module):
        pass

    assert Config(name="x", model=Net()).model == Net()
    for wrong in (Net, "resnet18", RandomCrop(), Recorded("transform", "Tint", "my.py")):
        with pytest.raises(ConfigError, match=r"model = .* give a ModelConfig or an instance of a linen module"):
            Config(name="x", model=wrong)


def test_differing_fields_are_those_that_change_the_numbers():
    other = apply_overrides(BASE, ["--optim.lr", "0.3", "--log.every", "7", "--data.dir", "x", "--eval.tta", "mirror"])
    assert differing_fields(to_dict(BASE), to_dict(other)) == ["optim.lr: 0.1 there, 0.3 here"]
