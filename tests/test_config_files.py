"""Config files: modules of their own with their neighbours beside them, and their faults told with file and line."""

import dataclasses
import sys
import typing

import pytest

from jax_cifar import load_config
from jax_cifar.config.files import known_figure, variants_of
from jax_cifar.errors import ConfigError

START = "from jax_cifar.config import *\n"


def write(folder, **files):
    """Write `name="text"` as name.py, and give the path of the first."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder / f"{next(iter(files))}.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"broken\.py: it defines no function get_config\(\)\.$"),
        ("get_config = 3", r"broken\.py: it defines no function get_config\(\)\.$"),
        ("def get_config(): return 3", r"broken\.py: get_config\(\) returned int, not a jax_cifar Config"),
        ("\n\ndef get_config():\n  return 1 / 0", r"broken\.py, line 4: ZeroDivisionError: division by zero$"),
        ("import os\nos.environ['NOT_SET']", r"broken\.py, line 2: KeyError: 'NOT_SET'$"),
        ("\nimport nothing_of_this_name", r"line 2: ModuleNotFoundError: No module named 'nothing_of_this_name'$"),
        ("x = 1\ndef get_config(: pass", r"broken\.py, line 2: SyntaxError: invalid syntax$"),
        ("import sys\nsys.exit('enough')", r"broken\.py, line 2: SystemExit: enough$"),
        (f"{START}def get_config(): return OptimConfig(lr=-1)", r"broken\.py, line 2: optim\.lr = -1 is not allowed"),
        (f"{START}def get_config(): return OptimConfig(speed=1)", r"broken\.py, line 2: TypeError: .*'speed'$"),
        (
            "def get_config(size): pass",
            r"broken\.py: get_config\(size\) is called without arguments: give size a default",
        ),
        (
            "from typing import *\ndef get_config(variant: Literal['a']): pass",
            r"name one of its experiments: FILE\.py:a\.$",
        ),
        ("import my_broken_neighbour", r"my_broken_neighbour\.py, line 2: NameError: name 'nothing' is not defined$"),
        ("import my_misspelled_neighbour", r"my_misspelled_neighbour\.py, line 1: SyntaxError: .*$"),
    ],
)
def test_a_fault_in_a_config_file_is_shown_as_what_it_is(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)  # of code that lies in no file, "<string>", no file is made there either
    path = write(tmp_path, broken=text, my_broken_neighbour="x = 1\nnothing", my_misspelled_neighbour="def")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) not in sys.path


def test_a_file_may_describe_several_experiments(tmp_path, monkeypatch):
    path = write(
        tmp_path,
        two="from typing import Literal\n"
        "from jax_cifar.config import Config\n"
        "def get_config(variant: Literal['one', 'other'] = 'one'):\n"
        "    return Config(name=f'two_{variant}')\n",
    )
    monkeypatch.setenv("HOME", str(path.parent))
    names = [load_config(given).name for given in (path, f"{path}:one", f"{path}:other", f"~/{path.name}:other")]
    assert names == ["two_one", "two_one", "two_other", "two_other"]
    assert variants_of(f"~/{path.name}") == ("one", "other")
    with pytest.raises(ConfigError, match=r"two\.py: variant = 'third' is not allowed: choose one of one, other\."):
        load_config(f"{path}:third")
    with pytest.raises(ConfigError, match=r"variant = 'one' is not allowed: the file describes one experiment only"):
        load_config("configs/quickstart.py:one")
    with pytest.raises(ConfigError, match=r"There is no config file .*three\.py\. A config"):
        load_config(f"{tmp_path / 'three.py'}:one")


@pytest.mark.parametrize("parameter", ["variant: str = 'a'", "variant='a'", "variant: str | None = None", "which='a'"])
def test_a_variant_of_a_file_that_does_not_name_them_is_told_how_they_are_named(tmp_path, parameter):
    body = f"from jax_cifar.config import Config\ndef get_config({parameter}):\n    return Config(name='x')\n"
    path, name = write(tmp_path, mine=body), parameter.partition("=")[0].partition(":")[0]
    assert load_config(path).name == "x" and variants_of(path) == ()
    told = rf"get_config\({name}\) does not say which there are; write get_config\(variant: Literal"
    with pytest.raises(ConfigError, match=told):
        load_config(f"{path}:b")


def test_a_missing_config_file_names_the_nearest_where_one_is_near(tmp_path):
    write(tmp_path, quickstart="")
    with pytest.raises(ConfigError, match=r"There is no config file .*quickstar\.py.* Did you mean .*quickstart\.py\?"):
        load_config(tmp_path / "quickstar.py")
    with pytest.raises(ConfigError, match=r"There is no config file .*e\.py\. A config file is a Python file"):
        load_config(tmp_path / "e.py")
    with pytest.raises(ConfigError, match=r"no config file quickstar\. Did you mean configs/quickstart\.py\?"):
        load_config("quickstar")


def test_what_ships_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").name == "quickstart"
    assert load_config("cifar10_speedrun:88", ["--train.seed", "3"]).train.seed == 3
    with pytest.raises(ConfigError, match="choose one of"):
        load_config("cifar10_speedrun:80")
    with pytest.raises(ConfigError, match=r"no config file configs/quickstart\.py\. Did you mean quickstart\?"):
        load_config("configs/quickstart.py")
    (tmp_path / "quickstart").write_text("mine")  # a file of this name is what is meant
    with pytest.raises(ConfigError, match="its name does not end in"):
        load_config("quickstart")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.zip", b"PK\x03\x04", r"x\.zip is a zip archive\. A config file is a Python file"),
        ("x.py", b"PK\x03\x04\0", r"x\.py is a zip archive\."),
        ("x.tar.gz", b"\x1f\x8b\x08\0", r"x\.tar\.gz is a gzip archive\."),
        ("config.json", b'{"name": 1}', r"config\.json is JSON\. A config file is a Python file"),
        ("x.py", bytes(range(256)), r"x\.py is a binary file\."),
        ("x.txt", b"hello", r"x\.txt is no Python file: its name does not end in \.py\."),
        ("a.py/b.py", b"", r"a\.py is a folder\. Name one of its files, such as .*b\.py\."),
    ],
)
def test_what_is_no_python_file_is_said_to_be_what_it_is(tmp_path, name, content, message):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / name.partition("/")[0])
    assert "\n" not in str(caught.value)


NET = """
from __future__ import annotations
import dataclasses
from flax import linen as nn

@dataclasses.dataclass(frozen=True)
class Shape:
    sides: tuple[int, ...] = (1, 2)

class Net(nn.Module):
    hidden: int = {hidden}
    shape: Shape = Shape()

    @nn.compact
    def __call__(self, images, train: bool):
        return nn.Dense(self.hidden)(images)
"""
USES = f"{START}import my_layers\ndef get_config():\n    return Config(name='x', model=my_layers.Net())\n"


def test_each_config_gets_its_own_neighbour_of_the_same_name(tmp_path):
    first = write(tmp_path / "a", exp=USES, my_layers=NET.format(hidden=1))
    second = write(tmp_path / "b", exp=USES, my_layers=NET.format(hidden=2))
    before = set(sys.modules)
    hidden = [load_config(path).model.hidden for path in (first, second, first)]
    assert hidden == [1, 2, 1]
    assert "my_layers" not in sys.modules and set(sys.path).isdisjoint({str(first.parent), str(second.parent)})
    assert before < set(sys.modules)


def test_a_neighbour_that_was_edited_is_read_anew(tmp_path):
    path = write(tmp_path, exp=USES, my_layers=NET.format(hidden=1))
    assert load_config(path).model.hidden == 1
    write(tmp_path, my_layers=NET.format(hidden=7))
    assert load_config(path).model.hidden == 7
    assert not list(tmp_path.glob("__pycache__"))


def test_a_module_of_that_name_from_elsewhere_is_no_neighbour_and_stays(tmp_path, monkeypatch):
    write(tmp_path / "elsewhere", my_layers="Net = None")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    import my_layers  # type: ignore[import-not-found]

    try:
        path = write(tmp_path / "a", exp=USES, my_layers=NET.format(hidden=3))
        assert load_config(path).model.hidden == 3
        assert sys.modules["my_layers"] is my_layers
    finally:
        del sys.modules["my_layers"]


def test_annotations_of_a_file_and_of_its_neighbour_can_be_resolved_later(tmp_path):
    text = USES + NET.format(hidden=1).replace("from __future__ import annotations", "")
    path = write(tmp_path, exp="from __future__ import annotations\n" + text, my_layers=NET.format(hidden=1))
    network = load_config(path).model
    assert typing.get_type_hints(type(network))["hidden"] is int
    own = getattr(sys.modules[load_config(path).loaded_as], "Shape")  # noqa: B009
    assert typing.get_type_hints(own) == {"sides": tuple[int, ...]}
    assert dataclasses.replace(own(), sides=(3,)).sides == (3,)


def test_what_an_experiment_reaches_is_told_until_a_field_is_changed(tmp_path):
    text = """from typing import Literal
REACHES = {"wide": "98 %"}
def get_config(variant: Literal["broken", "narrow", "wide"] = "narrow"):
    assert variant != "broken"
    return Config(name=variant, optim=OptimConfig(lr=0.1 if variant == "wide" else 0.2))
"""
    file = write(tmp_path, told=START + text)
    assert (
        known_figure(load_config(f"{file}:wide", ["--train.seed", "7", "--log.every", "3", "--data.dir", "x"]))
        == "98 %"
    )
    for changed in (["--optim.lr", "0.2"], ["--train.epochs", "2"], ["--name", "other"]):
        assert known_figure(load_config(f"{file}:wide", changed)) is None
    wide = load_config(f"{file}:wide")
    assert known_figure(dataclasses.replace(wide, data=dataclasses.replace(wide.data, subset=10))) is None
    bare = write(tmp_path, bare=START + "REACHES = 3\ndef get_config(): return Config(name='bare')")
    for other in (load_config(file), load_config(bare), dataclasses.replace(wide, loaded_as=None)):
        assert known_figure(other) is None
