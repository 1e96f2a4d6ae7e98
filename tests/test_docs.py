"""The examples of the pages for users: they run as a user runs them."""

import json
import re
import runpy
import shutil

import fuzzing
import jax
import jax.export
import numpy as np
import pytest
from fixtures import WITHOUT_TORCH
from pages import EXAMPLES, ROOT, TEXT, blocks
from small_runs import untrained_run

from jax_cifar import apply_overrides, load_config, load_onnx, load_run, train, train_many
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.deploy.stablehlo import to_program
from jax_cifar.errors import ConfigError
from jax_cifar.models import check_network
from jax_cifar.training import loop

SMALL = [
    "--train.steps=6",
    "--data.subset=64",
    "--train.batch_size=16",
    "--checkpoint.every=0",
    "--eval.every=0",
    "--train.compilation_cache=false",
    "--log.tensorboard=false",
    "--log.plots=false",
]

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_pages_show_the_files_of_the_examples_as_they_are():
    pages = ("extending.md", "looking-inside.md", "trackers.md")
    shown = [block for page in pages for block in blocks(page, "python")]
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) == 12
    for file in files:
        assert file.read_text() in shown, f"no page shows {file.name} as it is"
        assert len(file.read_text().splitlines()) <= 40


# What a user may change of each on the command line, its own fields among them.
RECIPES = {
    "own_network.py": ["--model.features", "4"],
    "own_transform.py": ["--model.width", "4"],
    "own_optimizer.py:lion": ["--model.width", "4"],
    "own_optimizer.py:centred": ["--model.width", "4", "--optim.clip_norm", "1"],
    "own_schedule.py": ["--model.width", "4", "--optim.lr", "0.1"],
    "own_loss.py": ["--model.width", "4", "--mix.mixup_alpha", "0.2"],
    "own_recipe.py:wide": ["--model.features", "4"],
}


# Variants of what is run anyway, and what tests of the library cover.
SLOW = (
    "own_transform.py",
    "own_optimizer.py:lion",
    "own_optimizer.py:centred",
    "own_schedule.py",
    "own_loss.py",
    "own_recipe.py:wide",
)


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) if r in SLOW else r for r in RECIPES])
def test_an_example_trains_and_predicts_after_its_run_was_moved_and_its_file_is_gone(recipe, tmp_path):
    mine, run, moved = tmp_path / "mine", tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(EXAMPLES, mine)
    arguments = ["--config", f"{mine}/{recipe}", "--workdir", str(run), *SMALL, *RECIPES[recipe]]
    runpy.run_path(str(ROOT / "scripts/train.py"))["main"](arguments)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6 and np.isfinite(summary["test_loss"])

    run.rename(moved)
    shutil.rmtree(mine)
    if recipe.startswith(("own_network", "own_recipe")):
        with pytest.raises(ConfigError, match="--trust-code"):
            load_run(moved)
        found = load_run(moved, trust_code=True)
    else:
        found = load_run(moved)
        assert load_run(moved, trust_code=True).config.name == summary["config_name"]
    if recipe == "own_network.py":
        exports_both_ways(moved, tmp_path)
    report, test = found.evaluate("test"), found.part("test")
    assert (report.accuracy, report.loss) == (summary["test_accuracy"], summary["test_loss"])
    assert np.mean(found.predict(test.images) == test.labels) == report.accuracy


def exports_both_ways(run, folder):
    """A network of one's own becomes an ONNX file where its twin is named, and a StableHLO file without."""
    export = runpy.run_path(str(ROOT / "scripts/export.py"))["main"]
    arguments = ["--workdir", str(run), "--trust-code", "--out", str(folder / "net.onnx")]
    told = "An ONNX file needs torch" if WITHOUT_TORCH else r"name its twin.*--torch-twin.*--out .*net\.stablehlo"
    with pytest.raises(ConfigError, match=told):
        export(arguments)
    found = load_run(run, trust_code=True)
    images = found.part("test").images[:5]
    program = jax.export.deserialize(bytearray(to_program(found.network, found.variables)))
    assert np.allclose(found.logits(images), program.call(images), atol=1e-5)
    if not WITHOUT_TORCH:
        export([*arguments, "--torch-twin", f"{EXAMPLES}/own_network_torch.py:Net"])
        assert np.allclose(load_onnx(folder / "net.onnx").logits(images), program.call(images), atol=1e-5)


@pytest.mark.parametrize("recipe", SLOW)
def test_an_example_that_is_not_trained_here_can_be(recipe):
    config = load_config(EXAMPLES / recipe, [*SMALL, *RECIPES[recipe]])
    fuzzing.trace(config, load_data(config.data))


@pytest.mark.slow
def test_own_fields_and_seeds_go_through_train_many():
    configs = [
        load_config(EXAMPLES / "own_network.py", [*SMALL, "--model.features=4", f"--train.seed={i}"]) for i in (0, 1)
    ]
    accuracies = [result.test_accuracy for result in train_many(configs)]
    assert len(accuracies) == 2 and None not in accuracies


@pytest.mark.slow
@pytest.mark.parametrize("script", ["own_callback.py", "own_data.py"])
def test_a_script_of_the_examples_runs(script, tmp_path, monkeypatch, capsys):
    small = [option for option in SMALL if "subset" not in option and "eval" not in option]
    monkeypatch.chdir(tmp_path)

    def short(config, *arguments, **options):
        thin = ["--model.features=4"] if config.name == "own_network" else ["--model.width=4"]
        return loop.train(apply_overrides(config, [*small, *thin, "--eval.every=0.01"]), *arguments, **options)

    monkeypatch.setattr("jax_cifar.train", short, raising=False)
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"best on digits: \d" if script == "own_callback.py" else r"\['(upright|lying)'", said), said
    assert "WARNING" not in said


def test_the_example_of_looking_inside_runs(tmp_path, monkeypatch, capsys):
    run = untrained_run(tmp_path, model={"width": 2}, data={"subset": None})
    monkeypatch.setattr("jax_cifar.load_run", lambda folder: run, raising=False)
    runpy.run_path(str(EXAMPLES / "looking_inside.py"), run_name="__main__")
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["conv1", "bn1", "bn2", "bn3"]


def test_a_run_prints_the_console_sample_and_its_folder_holds_what_the_pages_say(tmp_path, capsys):
    small = [option for option in SMALL if "eval" not in option and "log" not in option]
    workdir = train(load_config(ROOT / "configs/quickstart.py", [*small, "--model.width=4"]), tmp_path / "run").workdir
    check_folder(workdir)
    check_console(capsys.readouterr().out)


def check_folder(workdir):
    there = {f"{path.name}/" if path.is_dir() else path.name for path in workdir.iterdir()}
    for page, title in (("architecture.md", "## A run folder"), ("README.md", "## A run folder")):
        section = TEXT[page].partition(title)[2].partition("\n## ")[0]
        cells = " ".join(re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE))
        named = set(re.findall(r"`([\w.]+/?)`", cells))
        assert named - there == set()
        assert there - named <= ({"source.json"} if page == "README.md" else set())
    assert (workdir / "source/quickstart.py").is_file()


def check_console(said):
    (sample,) = [block for block in blocks("README.md") if " epoch " in block]

    def form(line):
        return re.sub(r" *\d[\d,.:e-]*", " 0", re.sub(r"/\w\S*/\S+", "FOLDER", line))

    printed = {form(line) for line in said.splitlines()}
    assert "loaded_as" not in said
    for line in filter(None, sample.splitlines()):
        assert form(line) in printed, line


def test_the_readme_snippets_are_an_experiment(tmp_path, monkeypatch):
    network, transform, data, *_ = blocks("README.md", "python")
    (tmp_path / "mine.py").write_text(network)
    config = load_config(tmp_path / "mine.py")
    check_network(config.model, (32, 32, 3), (), 10)

    (tmp_path / "transforms.py").write_text(
        f"{transform}\nfrom mine import *\nimport dataclasses, mine\n"
        "get_config = lambda: dataclasses.replace(mine.get_config(), augment=AUGMENT)\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = np.arange(64, dtype=np.int32) % 2
    config = load_config(tmp_path / "transforms.py", ["--train.steps=1", "--train.batch_size=8", *SMALL[3:]])
    splits = Splits("own", Dataset(images, labels), Dataset(images, labels), None, ("cat", "dog"))
    assert train(config, tmp_path / "run", splits=splits).summary["steps"] == 1

    monkeypatch.chdir(ROOT)
    seen = []
    monkeypatch.setattr("jax_cifar.train", lambda *arguments, splits: seen.append(splits), raising=False)
    monkeypatch.setattr("jax_cifar.load_run", lambda folder: load_run(tmp_path / "run", trust_code=True), raising=False)
    values = {"images": images, "labels": labels, "test_images": images[:5], "test_labels": labels[:5]}
    exec(data, values)
    assert seen[0].label_names == ("cat", "dog")


@pytest.mark.slow
def test_what_the_page_for_users_of_pytorch_says_of_both_sides_is_so(tmp_path):
    script = tmp_path / "both_sides.py"
    script.write_text("\n".join(blocks("from-pytorch.md", "python")))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = runpy.run_path(str(script), run_name="both_sides")
    assert found["back"].keys() == {"params", "batch_stats"}  # its last block
