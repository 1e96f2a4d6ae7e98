"""Networks, transforms and functions of a user's own in a run's record: named, read back unrun, and revived."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jax_cifar import load_config
from jax_cifar.augment import compose
from jax_cifar.config import Config
from jax_cifar.config.files import check_recordable, differing_fields, from_dict, to_dict
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.revive import has_placeholders, revive, revive_all
from jax_cifar.config.source import own_code, record_source, source_of, trusted_namespaces
from jax_cifar.errors import ConfigError
from jax_cifar.files import read_record, write_record

OWN = """
import dataclasses, functools, pathlib
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen as nn
from jax_cifar.augment import OneOf, RandomCrop, Sometimes
from jax_cifar.config import *
from my_layers import Block, Tint
pathlib.Path(__file__).with_name("ran").touch()

@dataclasses.dataclass(frozen=True)
class Sizes:
    first: int = 3

class Net(nn.Module):
    hidden: int = 8
    blocks: tuple = ()
    act: object = nn.relu
    dtype: object = jnp.bfloat16
    sizes: Sizes = Sizes()
    norm: object = functools.partial(nn.BatchNorm, momentum=0.9)

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.hidden)(images)

def loss(logits, targets):
    return optax.softmax_cross_entropy(logits, targets)

def share(step, total, power=1):
    return (1 - step / total) ** power

LAMBDA = lambda step, total: 1.0

def inner():
    def local(step, total): return 1.0
    return local

class Plain:
    def __call__(self, step, total): return 1.0

def get_config():
    return Config(
        name="own",
        augment=(Tint(0.5), RandomCrop(padding=2), OneOf((RandomCrop(), Sometimes(RandomCrop())))),
        model=Net(blocks=(Block(4, name="stem"), nn.Dense(3)), act=jax.nn.gelu),
        optim=OptimConfig(name=functools.partial(optax.lion, b1=0.95)),
        schedule=ScheduleConfig(name=functools.partial(share, power=2)),
        train=TrainConfig(loss=loss),
    )
"""
LAYERS = """
import dataclasses
from flax import linen as nn

class Block(nn.Module):
    width: int

@dataclasses.dataclass(frozen=True)
class Tint:
    strength: float
    def __call__(self, key, images, info=None):
        return images * self.strength
"""


NET = """
from flax import linen as nn
from .scales import SCALE

class Net(nn.Module):
    width: int = 3
"""


@pytest.fixture
def path(tmp_path):
    """An experiment with a part of its own wherever one may be, and a neighbour."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "my_layers.py").write_text(LAYERS)
    (folder / "exp.py").write_text(OWN)
    return folder / "exp.py"


def test_what_is_ones_own_is_recorded_by_name_and_origin(path):
    values = json.loads(json.dumps(to_dict(load_config(path))))
    assert values["augment"][0] == {"transform": "Tint", "from": "my_layers.py", "strength": 0.5}
    model = values["model"]
    assert (model["network"], model["from"], model["hidden"]) == ("Net", "exp.py", 8)
    assert model["blocks"][0] == {"network": "Block", "from": "my_layers.py", "width": 4, "name": "stem"}
    assert model["blocks"][1]["from"] == "flax.linen.linear" and model["blocks"][1]["features"] == 3
    assert model["act"]["function"] == "gelu" and model["act"]["from"].startswith("jax.")
    assert model["dtype"]["dtype"] == "bfloat16"
    assert model["sizes"] == {"dataclass": "Sizes", "from": "exp.py", "first": 3}
    assert model["norm"]["class"] == "BatchNorm" and model["norm"]["arguments"] == {"momentum": 0.9}
    assert {"parent", "name"}.isdisjoint(model)
    assert values["optim"]["name"] == {"function": "lion", "from": "optax._src.alias", "arguments": {"b1": 0.95}}
    assert values["schedule"]["name"] == {"function": "share", "from": "exp.py", "arguments": {"power": 2}}
    assert values["train"]["loss"] == {"function": "loss", "from": "exp.py"}
    assert "loaded_as" not in values


def test_code_of_ones_own_is_all_that_it_imports_as_it_was_run(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    files = {"__init__": "", "scales": "SCALE = 2\n", "unused": "", "net": NET}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("my_package.net")
    importlib.import_module("my_package.unused")
    config = Config(name="a", model=net.Net())
    names = {"my_package/__init__.py", "my_package/net.py", "my_package/scales.py"}
    assert own_code(config).keys() == {file.name for file in source_of(config)} == names
    before = own_code(config)
    (package / "scales.py").write_text("SCALE = 3\n")
    assert own_code(config) == before  # what is in memory is what it was
    importlib.reload(sys.modules["my_package.scales"])
    assert {name for name, digest in own_code(config).items() if digest != before[name]} == {"my_package/scales.py"}
    for name in files:
        monkeypatch.delitem(sys.modules, f"my_package.{name}", raising=False)


def test_reading_a_record_runs_nothing_and_writes_back_the_same(path):
    values = to_dict(load_config(path))
    ran = path.with_name("ran")
    ran.unlink()
    config = from_dict(json.loads(json.dumps(values)))
    assert not ran.exists()
    assert to_dict(config) == values and config == from_dict(values) and has_placeholders(config)
    assert differing_fields(values, to_dict(load_config(path))) == []
    assert (repr(config.model), str(config.train.loss)) == ("Net", "loss")
    uses: list[Any] = [config.model.init, config.model.apply, config.train.loss, config.augment[0], config.optim.name]
    for use in uses:
        with pytest.raises(ConfigError, match=r"is code of this run's own, and has not been run: say --trust-code"):
            use(1, images=2)
    with pytest.raises(ConfigError, match=r"is code of this run's own, and has not been run: say --trust-code"):
        compose(config.augment)
    group = Recorded("transform", "Sometimes", None, (("inner", config.augment[0]), ("p", 0.5)))
    with pytest.raises(ConfigError, match=r"^Tint \(from my_layers\.py\) is code of this run's own"):
        compose([group])


def test_a_record_is_revived_with_the_code_that_is_given(path):
    original = load_config(path)
    program = sys.modules[original.loaded_as]
    neighbour = sys.modules[original.augment[0].__class__.__module__]
    config = revive_all(from_dict(to_dict(original)), {"exp.py": program, "my_layers.py": vars(neighbour)})
    assert to_dict(config) == to_dict(original) and not has_placeholders(config)
    assert (config.augment, config.train) == (original.augment, original.train)
    # Two partials are never equal.
    assert config.model.clone(norm=None) == original.model.clone(norm=None)
    schedule: Any = config.schedule.name
    assert (config.model.norm().momentum, schedule(1, 2)) == (0.9, 0.25)
    with pytest.raises(ConfigError, match=r"Tint \(from my_layers\.py\) is code of this run's own"):
        revive_all(from_dict(to_dict(original)), {"exp.py": program})


def test_a_group_of_the_library_with_a_transform_of_ones_own_waits_for_it():
    inner = {"transform": "Tint", "from": "my.py", "strength": 1.0}
    group = {"transform": "Sometimes", "transform_": inner, "p": 0.5}
    config = from_dict({"name": "x", "augment": [group]})
    assert to_dict(config)["augment"] == [group]
    assert isinstance(config.augment[0], Recorded)


@pytest.mark.parametrize(
    "values",
    [
        {"function": "system", "from": "os"},
        {"function": "os.system", "from": "jax._src.config"},
        {"class": "subprocess.Popen", "from": "numpy.testing._private.utils"},
        {"network": "lru_cache", "from": "jax", "args": "true"},
        {"function": "f", "from": "jax.nothing"},
        {"function": "f", "from": "jaxwicked"},
        {"function": "nothing", "from": "optax"},
    ],
)
def test_a_record_reaches_no_code_but_that_of_the_installed_libraries(values):
    (kind,) = {"function", "class", "network"} & set(values)
    fields = {"args": "true"} if kind == "network" else {}
    with pytest.raises(ConfigError):
        revive(Recorded(kind, values[kind], values["from"], tuple(fields.items())), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("schedule=ScheduleConfig(name=LAMBDA)", r"schedule\.name = <function <lambda> .*: define it at the top level"),
        ("schedule=ScheduleConfig(name=inner())", r"schedule\.name = <function inner\.<locals>\.local .* top level"),
        ("schedule=ScheduleConfig(name=Plain())", r"schedule\.name = .*Plain.*: make its class a dataclass"),
        (
            "schedule=ScheduleConfig(name=functools.partial(share, 1))",
            r"schedule\.name = .*: give its arguments by keyword",
        ),
        (
            "schedule=ScheduleConfig(name=functools.partial(share, power=LAMBDA))",
            r"schedule\.name\.power = .* top level",
        ),
        ("model=Net(hidden=jnp.ones(3))", r"model\.hidden = Array\(.* cannot be recorded with the run: give numbers"),
        ("model=Net(blocks=(1, {2}))", r"model\.blocks\[1\] = \{2\} cannot be recorded"),
        (
            "model=Net(hidden=float('inf'))",
            r"model\.hidden = inf cannot be recorded with the run: give a finite number",
        ),
        ("augment=(lambda key, images, info: images,)", r"augment\[0\] = <function .*: define it at the top level"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_the_way_out(path, change, message):
    path.write_text(OWN[: OWN.index("def get_config")] + f"def get_config(): return Config(name='x', {change})\n")
    config = load_config(path)
    with pytest.raises(ConfigError, match=message) as caught:
        check_recordable(config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def recorded_run(path, folder):
    """A run folder that keeps the experiment, and its record."""
    folder.mkdir()
    config = load_config(path)
    record_source(folder, config)
    return folder, to_dict(config)


def test_a_run_folder_keeps_the_source_of_its_experiment(path, tmp_path):
    files = source_of(load_config(path))
    assert [(file.name, file.path, file.text) for file in files] == [
        ("exp.py", path, OWN),
        ("my_layers.py", path.with_name("my_layers.py"), LAYERS),
    ]
    folder, _ = recorded_run(path, tmp_path / "run")
    assert (folder / "source/my_layers.py").read_bytes() == path.with_name("my_layers.py").read_bytes()
    listed = json.loads((folder / "source.json").read_text())
    assert listed["origins"] == {"exp.py": "exp.py", "my_layers.py": "my_layers.py"}
    assert [file["sha256"] for file in listed["files"]] == [file.sha256 for file in files]


def test_a_config_of_the_librarys_parts_is_kept_but_needs_no_code(tmp_path):
    folder, values = recorded_run(Path("configs/quickstart.py"), tmp_path / "run")
    assert (folder / "source/quickstart.py").read_bytes() == Path("configs/quickstart.py").read_bytes()
    assert json.loads((folder / "source.json").read_text())["origins"] == {}
    assert not has_placeholders(from_dict(values)) and trusted_namespaces(folder, trust_code=True) == {}


def test_code_that_lies_unchanged_at_its_place_is_trusted(path, tmp_path):
    folder, values = recorded_run(path, tmp_path / "run")
    config = revive_all(from_dict(values), trusted_namespaces(folder, trust_code=False))
    assert to_dict(config) == values
    # A file that was slipped into the run folder is not what is imported.
    (folder / "source/optax.py").write_text("raise RuntimeError")
    assert trusted_namespaces(folder, trust_code=False).keys() == {"exp.py", "my_layers.py"}


@pytest.mark.parametrize("spoil", ["edit", "remove", "edit the copy", "point into the run folder", "relative"])
def test_code_that_is_not_known_is_run_only_where_the_user_says_so(path, tmp_path, spoil, monkeypatch):
    folder, values = recorded_run(path, tmp_path / "run")
    neighbour, listed = path.with_name("my_layers.py"), folder / "source.json"
    if spoil == "edit":
        neighbour.write_text("raise RuntimeError")
    elif spoil == "remove":
        neighbour.rename(tmp_path / "gone.py")
        path.unlink()
    elif spoil == "edit the copy":
        (folder / "source/my_layers.py").write_text(LAYERS + "x = 1\n")
    else:
        place = str(folder / "source") if spoil.startswith("point") else "source"
        monkeypatch.chdir(folder)
        values_there = json.loads(json.dumps(read_record(listed)).replace(str(path.parent), place))
        write_record(listed, values_there)  # who means harm writes the sum too
    path.with_name("ran").unlink()
    with pytest.raises(
        ConfigError, match=r"my_layers\.py is not.*--trust-code \(trust_code=True in Python\)"
    ) as caught:
        trusted_namespaces(folder, trust_code=False)
    assert not (folder / "source/ran").exists() and not path.with_name("ran").exists()
    assert str(folder) in str(caught.value)
    config = revive_all(from_dict(values), trusted_namespaces(folder, trust_code=True))
    assert to_dict(config) == values and (folder / "source/ran").exists()


def test_a_damaged_source_record_is_one_message(path, tmp_path):
    folder, _ = recorded_run(path, tmp_path / "run")
    listed = folder / "source.json"
    for text in ("{", "3", '{"files": 3, "origins": {}}', '{"files": [{"name": "x"}], "origins": {}}'):
        listed.write_text(text)
        with pytest.raises(ConfigError, match=r"source\.json is damaged"):
            trusted_namespaces(folder, trust_code=True)
    listed.write_text('{"files": [{"name": "../x.py", "path": "/x.py", "sha256": ""}], "origins": {"x": "../x.py"}}')
    with pytest.raises(ConfigError, match=r"names '\.\./x\.py', which is no file in the folder source/"):
        trusted_namespaces(folder, trust_code=True)
    listed.unlink()
    with pytest.raises(ConfigError, match=r"has code of its own, but source\.json is missing"):
        trusted_namespaces(folder, trust_code=True)


def test_the_code_of_a_script_is_that_scripts_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "my_layers.py").write_text(LAYERS)
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib\nfrom flax import linen as nn\nfrom my_layers import Tint\nfrom jax_cifar.config import *\n"
        "from jax_cifar.config.files import to_dict\n"
        "from jax_cifar.config.source import record_source, trusted_namespaces\n"
        "class Net(nn.Module):\n    hidden: int = 3\n"
        "if __name__ == '__main__':\n"
        "    run, config = pathlib.Path('run'), Config(name='x', model=Net(), augment=(Tint(0.5),))\n"
        "    record_source(run, config)\n"
        "    import json; (run / 'config.json').write_text(json.dumps(to_dict(config)))\n"
        "    assert trusted_namespaces(run, False)['script.py'].Net is Net\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "script.py"], check=True, cwd=tmp_path, env=environment)
    values = json.loads((tmp_path / "run/config.json").read_text())
    assert (values["model"]["from"], values["augment"][0]["from"]) == ("script.py", "my_layers")
    for trust_code in (False, True):
        namespaces = trusted_namespaces(tmp_path / "run", trust_code)
        config = revive_all(from_dict(values), namespaces)
        assert config.model.hidden == 3 and to_dict(config)["augment"][0]["strength"] == 0.5
