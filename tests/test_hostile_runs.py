"""Run folders of somebody who means harm: loading one runs nothing, reads nothing elsewhere, ends in one message."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jax_cifar import load_run
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.revive import revive
from jax_cifar.config.source import trusted_namespaces
from jax_cifar.config.spec import InputSpec
from jax_cifar.errors import CheckpointError, ConfigError, UserError
from jax_cifar.files import sha256_of_json
from jax_cifar.run.folder import read_config, read_spec
from jax_cifar.run.load import recorded_checksums
from jax_cifar.run.manifest import Damaged, read_manifest
from jax_cifar.run.untrusted import check_claims, check_state


@pytest.fixture
def folder(tmp_path) -> Path:
    """What of a run is read before its network is made."""
    (tmp_path / "config.json").write_text(json.dumps({"name": "x", "model": {"name": "tiny_cnn", "width": 4}}))
    spec = {"image_shape": [8, 8, 3], "mean": [0.5] * 3, "std": [0.2] * 3, "side": None, "label_names": ["a", "b"]}
    (tmp_path / "network.json").write_text(json.dumps({**spec, "data_name": "x"}))
    return tmp_path


def recorded(kind: str, name: str, origin: str, **fields: Any) -> Recorded:
    return Recorded(kind, name, origin, tuple(fields.items()))


# What runs when a network is called: everything that a field of one could name.
@pytest.mark.parametrize(
    ("kind", "name", "origin"),
    [
        ("function", "system", "os"),
        ("function", "load", "numpy"),  # unpickles with allow_pickle=True
        ("function", "save", "jax.numpy"),
        ("function", "fromfile", "jax.numpy"),
        ("class", "memmap", "numpy"),
        ("function", "pure_callback", "jax"),
        ("function", "start_server", "jax.profiler"),
        ("function", "import_module", "importlib"),
        ("function", "train", "jax_cifar.training.loop"),
        ("function", "write_text", "jax_cifar.files"),
        ("function", "load_run", "jax_cifar.run.load"),
        ("function", "importlib.import_module", "jax_cifar.config.revive"),
        ("function", "Dense.__init__.__globals__", "flax.linen.linear"),
        ("class", "Dense.__class__", "flax.linen.linear"),
        ("function", "set_logical_axis_rules", "flax.linen.spmd"),
        ("function", "eval", "builtins"),
        ("network", "FunctionType", "types"),
        ("function", "main", "jax_cifar.__main__"),
        ("function", "", "optax"),
    ],
)
def test_a_recorded_name_leads_to_layers_and_functions_of_arrays_only(kind, name, origin):
    with pytest.raises(ConfigError):
        revive(recorded(kind, name, origin), {})


def test_no_module_is_imported_because_a_run_folder_names_it(tmp_path, monkeypatch):
    (tmp_path / "jax_cifar_evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    imported = set(sys.modules)
    for origin in ("numpy.f2py.__main__", "numpy.conftest", "jax.collect_profile", "optax.contrib", "jax_cifar_evil"):
        with pytest.raises(ConfigError, match="has not been run"):
            revive(recorded("class", "Evil", origin), {})
    assert "numpy.f2py.__main__" not in set(sys.modules) - imported


def test_layers_and_activations_need_no_trust():
    import flax.linen as nn
    import jax.numpy as jnp

    from jax_cifar.models import layers

    for name, origin in (
        ("gelu", "jax._src.nn.functions"),
        ("tanh", jnp.tanh.__module__),
        ("avg_pool", nn.avg_pool.__module__),
    ):
        assert callable(revive(recorded("function", name, origin), {}))
    assert revive(recorded("class", "Dense", "flax.linen.linear"), {}) is nn.Dense
    assert revive(recorded("class", "Dense", "jax_cifar.models.layers"), {}) is layers.Dense
    assert revive(recorded("class", "Dense", "flax.where.it.was.before"), {}) is nn.Dense
    net = revive(recorded("network", "Sequential", "flax.linen.combinators", layers=(nn.Dense(3), nn.relu)), {})
    assert net == nn.Sequential((nn.Dense(3), nn.relu))
    assert revive(recorded("dtype", "bfloat16", "numpy"), {}) == jnp.bfloat16


@pytest.mark.parametrize("name", ["O", "f4,f4", "object", "V1000000000", "float128 ", "__class__", "load"])
def test_a_dtype_is_one_of_numbers(name):
    with pytest.raises(ConfigError, match="is no number type"):
        revive(recorded("dtype", name, "numpy"), {})


def test_code_that_is_trusted_gives_what_it_defines_and_nothing_that_it_can_reach():
    module = ModuleType("mine")
    exec("import os\nfrom subprocess import Popen\ndef f(x): return x\nclass A:\n    class B: pass\n", vars(module))
    for name in ("f", "A", "A.B"):
        assert callable(revive(recorded("class", name, "mine.py"), {"mine.py": module}))
    for name in ("os.system", "Popen", "f.__globals__", "f.__globals__.__builtins__.eval", "A.__class__", "A.mro"):
        with pytest.raises(ConfigError, match=r"mine\.py has no function"):
            revive(recorded("function", name, "mine.py"), {"mine.py": module})


def own_run(tmp_path: Path, place: Path, kept: str, name: str | None = None) -> Path:
    """A run folder whose network is from `place`, which it keeps as `kept`."""
    folder = tmp_path / "run"
    name = name or place.name
    (folder / "source" / name).parent.mkdir(parents=True)
    (folder / "source" / name).write_text(kept)
    listed = {"files": [{"name": name, "path": str(place), "sha256": ""}], "origins": {name: name}}
    (folder / "source.json").write_text(json.dumps(listed))
    return folder


HARMLESS = "def net(x): return x\n"


def test_code_runs_where_it_lies_unchanged_and_is_the_users_own(tmp_path):
    place = tmp_path / "mine.py"
    place.write_text(HARMLESS)
    folder = own_run(tmp_path, place, HARMLESS)
    assert trusted_namespaces(folder, trust_code=False)["mine.py"].net(3) == 3


@pytest.mark.parametrize(
    "way", ["link", "loop", "linked folder", "installed", "script", "deeper", "pipe", "other user", "kept link"]
)
def test_code_that_only_seems_to_lie_at_its_place_is_not_run(way, tmp_path, monkeypatch):
    place, name = tmp_path / "mine.py", None
    place.write_text(HARMLESS)
    if way == "link":
        shutil.move(place, tmp_path / "other.py")
        place.symlink_to(tmp_path / "other.py")
    elif way == "loop":
        place.unlink()
        place.symlink_to(place)
    elif way == "linked folder":
        (tmp_path / "linked").symlink_to(tmp_path)
        place = tmp_path / "linked" / "mine.py"
    elif way == "installed":
        place = Path(json.__file__)
    elif way == "script":
        place = Path(__file__).parents[1] / "scripts/evaluate.py"
    elif way == "deeper":  # its neighbours would be looked for in the folder above
        name = "elsewhere/mine.py"
    folder = own_run(tmp_path, place, HARMLESS if way == "loop" else place.read_text(), name)
    if way == "pipe":
        place.unlink()
        os.mkfifo(place)
    elif way == "other user":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        if place.stat().st_uid == 0:  # root's files are the system's
            os.chown(place, 54321, -1)
    elif way == "kept link":
        (folder / "source/mine.py").unlink()
        (folder / "source/mine.py").symlink_to(place)
    with pytest.raises(ConfigError, match=r"--trust-code|is a link that leaves the run folder"):
        trusted_namespaces(folder, trust_code=False)


def test_a_session_gives_its_code_to_runs_of_its_own_and_a_script_does_not(tmp_path, monkeypatch):
    (tmp_path / "source.json").write_text('{"files": [], "origins": {"__main__": null}}')
    script = ModuleType("__main__")
    script.__file__ = str(Path(__file__))
    monkeypatch.setitem(sys.modules, "__main__", script)
    with pytest.raises(ConfigError, match="the module __main__ is not"):
        trusted_namespaces(tmp_path, trust_code=False)
    del script.__file__
    assert trusted_namespaces(tmp_path, trust_code=False) == {"__main__": script}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"name": ' * 300 + "1" + "}" * 300,
        '{"name": "x", "name": "y"}',
        '{"name": 1' + "0" * 5000 + "}",
        '{"name": 1e999}',
        '{"name": NaN}',
        '"x"',
        "null",
        "",
        "\xff\xfe",
        '{"name": "../../x"}',
        '{"name": "x\\u001b[2J"}',
        '{"name": "x", "model": {"network": "Dense", "from": "flax.linen.linear", "features": {"a": 1}, "x": 1}}',
        '{"name": "x", "model": {"function": "relu", "from": "jax.nn"}}',
        '{"name": "x", "model": {"network": 3, "from": []}}',
        '{"name": "x", "model": {"name": "tiny_cnn", "width": 1e400}}',
        '{"name": "x", "optim": {"lr_multipliers": [["(a+)+$", 1.0], ["[", 2.0]]}}',
    ],
)
def test_a_config_of_any_content_is_one_message(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        load_run(folder)
    assert "checkpoint" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"image_shape": [0, 8, 3]},
        {"image_shape": "abc"},
        {"image_shape": [8, 8]},
        {"mean": [0.5]},
        {"mean": [1e308] * 3},
        {"mean": ["a", "b", "c"]},
        {"std": [0.0] * 3},
        {"side": -1},
        {"side": 10**12},
        {"label_names": []},
        {"label_names": ["a", "a"]},
        {"label_names": [1, 2]},
        {"label_names": {"a": 1}, "mean": None},
        {"data_name": ["x"]},
        {"classes": 3},
    ],
)
def test_what_the_network_sees_is_checked(folder, change):
    values = {**json.loads((folder / "network.json").read_text()), **change}
    (folder / "network.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"network\.json does not say what the network sees"):
        load_run(folder)


def test_a_pipe_in_place_of_any_file_is_not_waited_for(folder):
    for name in ("config.json", "network.json", "source.json", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    for read, path in ((read_config, folder), (read_spec, folder), (read_manifest, folder)):
        with pytest.raises((CheckpointError, Damaged), match="pipe or a device"):
            read(path)
    with pytest.raises(ConfigError, match=r"source\.json is damaged"):
        trusted_namespaces(folder, trust_code=True)


def signed(folder: Path, body: dict[str, Any]) -> Path:
    """A checkpoint's manifest with the sum that it should have."""
    path = folder / str(body.get("step", 7))
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({"sha256": sha256_of_json(body), **body}))
    return path


LEAF = [[2, 3], "float32", "0" * 64]


@pytest.mark.parametrize(
    "leaves",
    [
        {"/etc/passwd": LEAF},
        {"params/../../../x": LEAF},
        {"": LEAF},
        {"params/\x1b[2J": LEAF},
        {"params/a": [[2, 3], "object", ""]},
        {"params/a": [[2, 3], "f4,O", ""]},
        {"params/a": [[-1], "float32", ""]},
        {"params/a": [[1.5], "float32", ""]},
        {"params/a": "abc"},
        {"params/a": [[2], "float32"]},
        [],
    ],
)
def test_a_manifest_names_arrays_of_numbers_in_its_own_folder(tmp_path, leaves):
    with pytest.raises(Damaged):
        read_manifest(signed(tmp_path, {"step": 7, "extra": {}, "leaves": leaves}))
    assert read_manifest(signed(tmp_path, {"step": 8, "extra": {}, "leaves": {"params/a": LEAF}}))["step"] == 8


@pytest.mark.parametrize("extra", [{"judged_by": [1]}, {"fingerprint": "x", "judged_by": {"test": None}}, {}])
def test_checksums_that_are_none_compare_with_nothing(tmp_path, extra):
    assert recorded_checksums(signed(tmp_path, {"step": 7, "extra": extra, "leaves": {}})) == {}


def test_a_checkpoint_holds_files_and_folders_only_and_no_more_than_memory_does(tmp_path):
    state = tmp_path / "state"
    (state / "d").mkdir(parents=True)
    (state / "d/data").write_bytes(b"x")
    check_state(state, {"a": LEAF})
    with pytest.raises(CheckpointError, match=r"claims to hold 4,000,000,000\.0 GB of arrays"):
        check_state(state, {"a": [[10**18], "float32", ""]})
    for make, message in ((lambda at: at.symlink_to("/dev/zero"), "is a link"), (os.mkfifo, "pipe or a device")):
        make(state / "d/more")
        with pytest.raises(CheckpointError, match=message):
            check_state(state, {"a": LEAF})
        (state / "d/more").unlink()
    (state / "e").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="is a link"):
        check_state(state, {"a": LEAF})


def test_arrays_of_other_shapes_than_the_manifest_lists_are_not_read():
    def found(shape: tuple[int, ...], chunk: tuple[int, ...] = (), dtype: str = "float32") -> Any:
        return SimpleNamespace(shape=shape, dtype=np.dtype(dtype), storage=SimpleNamespace(chunk_shape=chunk))

    check_claims({"a": found((2, 3), (2, 3))}, {"a": LEAF})
    for arrays in (
        {"a": found((10**11, 3))},
        {"a": found((2, 3), (10**11, 1))},
        {"a": found((2, 3), dtype="float64")},
        {"a": found((2, 3)), "/etc/b": found(())},
        {},
    ):
        with pytest.raises(ValueError, match="a"):
            check_claims(arrays, {"a": LEAF})


def test_a_whole_checkpoint_that_claims_a_huge_array_is_damaged(finished_run, tmp_path):
    import tensorstore

    shutil.copytree(finished_run.workdir, tmp_path / "run")
    (checkpoint,) = list((tmp_path / "run/checkpoints").glob("[0-9]*"))[-1:]
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{checkpoint}/state"}).result()
    key = next(key for key in store.list().result() if b"params/" in key and key.endswith(b".zarray"))
    values = json.loads(store.read(key).result().value)
    store.write(key, json.dumps({**values, "shape": [10**6] * len(values["shape"])}).encode()).result()
    with pytest.raises(CheckpointError, match="is not what was saved"):
        load_run(tmp_path / "run")


def test_the_spec_of_a_run_is_checked_where_it_is_made():
    with pytest.raises(ConfigError, match=r"InputSpec\.image_shape = \(0, 8, 3\) is not allowed"):
        InputSpec((0, 8, 3), (0.5,) * 3, (0.2,) * 3, None, ("a",))
