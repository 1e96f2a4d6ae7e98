"""The pages for users: their examples run as a user runs them, and what they name exists."""

import ast
import json
import re
import runpy
import shlex
import shutil
import tomllib
from functools import cache
from pathlib import Path

import faults
import fuzzing
import jax
import jax.export
import mutants
import numpy as np
import pytest
from fixtures import WITHOUT_TORCH
from small_runs import untrained_run

from jax_cifar import apply_overrides, load_config, load_onnx, load_run, train, train_many
from jax_cifar.config.files import field_types
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.deploy.stablehlo import to_program
from jax_cifar.errors import ConfigError
from jax_cifar.models import check_network
from jax_cifar.training import loop, many

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/from-pytorch.md",
        "docs/techniques.md",
        "docs/extending.md",
        "docs/looking-inside.md",
        "docs/trackers.md",
        "docs/scaling.md",
        "docs/cpu.md",
        "docs/reproducibility.md",
        "docs/architecture.md",
        "docs/deploy.md",
        "docs/security.md",
        "docs/reliability.md",
        "docs/platforms.md",
    )
]
TEXT = {page.name: page.read_text() for page in PAGES}
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


def blocks(page, language=""):
    """The fenced blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL)
    return [text for found, text in fenced if found == language]


def commands():
    """Every `python ...` command of the pages, without its comment."""
    lines = [line for page in TEXT for block in blocks(page) for line in block.splitlines()]
    lines += [code for page in TEXT for code in re.findall(r"`(python [^`]*)`", TEXT[page])]
    return sorted({line.partition("  #")[0].strip() for line in lines if line.startswith("python ")})


@cache
def definitions(path):
    """The top-level functions, classes and constants of a file, and the methods as `Class.method`."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


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


def test_a_page_names_only_files_that_exist():
    named = r"\b((?:configs|scripts|docs|tests|parity_tests|benchmarks|jax_cifar)/[\w/]+\.\w+)"
    for page in PAGES:
        for path in re.findall(named, re.sub(r"https?://\S+", "", TEXT[page.name])):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def headings(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_to_a_file_and_to_a_heading_of_it():
    anchors = 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in headings(target), f"{page.name}: {link}#{anchor}"
            anchors += bool(anchor)
    assert anchors > 20


def script_options(name):
    """The options that a script's source adds, its benchmarks' among them."""
    sources = [ROOT / "scripts" / name, ROOT / "jax_cifar/cli.py"]
    sources += (ROOT / "benchmarks").glob("*.py") if name == "benchmark.py" else []
    return {option for source in sources for option in re.findall(r'"(--[\w.-]+)"', source.read_text())} | {"--json"}


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_has_only_options_that_there_are(command, monkeypatch):
    words = shlex.split(command)[1:]
    if words[:2] == ["-m", "jax_cifar"]:  # a script by another name; without one they are listed
        words = [f"scripts/{word}.py" if i == 0 else word for i, word in enumerate(words[2:] or ["train", "--help"])]
    target = ROOT / words[0] if words[0] != "-m" else ROOT / f"{words[1].replace('.', '/')}.py"
    assert target.is_file()
    monkeypatch.chdir(ROOT)
    if words[0] in ("scripts/train.py", "scripts/train_many.py") and "--help" not in words:
        monkeypatch.setattr(loop, "train", lambda *arguments, **options: None)
        monkeypatch.setattr(many, "train_many", lambda *arguments, **options: None)
        main = runpy.run_path(str(target))["main"]
        if "--optim.lrr" in words:
            with pytest.raises(ConfigError, match=r"--optim\.lrr is not a field .* Did you mean --optim\.lr\?"):
                main(words[1:])
        else:
            main([word for word in words[1:] if word != "..."])
    elif words[0].startswith("scripts/"):
        known = script_options(target.name) | {f"--{name}" for name in field_types()} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known


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


def test_architecture_names_what_there_is():
    text = TEXT["architecture.md"]
    for path, _, name in re.findall(r"`((?:\w+/)*\w+\.py)(:([\w.]+))?`", text):
        file = next((root / path for root in (ROOT / "jax_cifar", ROOT) if (root / path).is_file()), None)
        assert file is not None, path
        assert not name or name in definitions(file), f"{path}:{name}"
    methods = set().union(*(definitions(path) for path in (ROOT / "jax_cifar").rglob("*.py")))
    named = re.findall(r"`([A-Z]\w+\.\w+)`", text)
    assert named and set(named) <= methods


def test_architecture_has_the_rooms_in_the_order_that_imports_go():
    rooms = re.findall(r"^\| `(\w+)` \|", TEXT["architecture.md"].partition("## A batch's way")[0], re.MULTILINE)
    assert set(rooms) == {path.parent.name for path in (ROOT / "jax_cifar").glob("*/__init__.py")}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    floor = {name.strip().removeprefix("jax_cifar."): i for i, layer in enumerate(layers) for name in layer.split("|")}
    assert [floor[room] for room in rooms] == sorted(floor[room] for room in rooms)


def test_the_parity_page_lists_the_mutants_and_test_files_that_there_are():
    page = (ROOT / "docs/parity.md").read_text()
    rows = re.findall(r"^\| (.+) \| `([^`]+\.py)` \| \S+ \| `([^`]+)` \|$", page, re.MULTILINE)
    files = re.findall(r"^\| `(test_\w+\.py)` \|", page, re.MULTILINE)
    way_out = "docs/parity.md is of another version: run `make parity`"
    assert rows == [(mutant.fault, mutant.file, mutant.test) for mutant in mutants.MUTANTS], way_out
    assert files == sorted(path.name for path in (ROOT / "parity_tests").glob("test_*.py")), way_out


def test_the_reliability_page_lists_the_faults_that_there_are():
    page = (ROOT / "docs/reliability.md").read_text().partition("## What survived means")[0]
    found = re.findall(r"^\| (.+) \| \d+ \| \d+ \| \d+ \|$", page, re.MULTILINE)
    assert found == [row.fault for row in faults.ROWS], "docs/reliability.md is old: run `make faults`"


@pytest.mark.slow
def test_what_the_page_for_users_of_pytorch_says_of_both_sides_is_so(tmp_path):
    script = tmp_path / "both_sides.py"
    script.write_text("\n".join(blocks("from-pytorch.md", "python")))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = runpy.run_path(str(script), run_name="both_sides")
    assert found["back"].keys() == {"params", "batch_stats"}  # its last block


def test_the_page_for_users_of_pytorch_is_python_and_names_tests_that_there_are():
    compile("\n".join(blocks("from-pytorch.md", "python")), "from-pytorch.md", "exec")
    tests = {path.name: path.read_text() for path in (ROOT / "parity_tests").glob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", TEXT["from-pytorch.md"])
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in tests[file] if name else file in tests, f"{file}::{name}"


@pytest.mark.parametrize("page", ["techniques.md", "cpu.md"])
def test_the_pages_of_figures_show_none_that_is_not_in_the_records(page):
    figure = r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+|\d+e-\d+)(?![\w.]*\d)"
    records = "".join((ROOT / name).read_text() for name in ("RESULTS.md", "experiments.md", "docs/parity.md"))
    text, _, recipes = TEXT[page].partition("## Whole recipes")
    text += re.sub(r"^(\|[^|]*\|[^|]*\|)[^|]*\|", r"\1", recipes, flags=re.MULTILINE)  # but for the published ones
    shown = re.findall(figure, re.sub(r"`[^`]*`", "", text.replace("**", "")))
    assert len(shown) > 40
    assert sorted(set(shown) - set(re.findall(figure, records.replace("**", "")))) == []


def test_the_readme_shows_no_figure_that_results_do_not_have():
    table = TEXT["README.md"].partition("## The first five minutes")[0]
    proofs = "".join((ROOT / name).read_text() for name in ("RESULTS.md", "docs/parity.md")).replace("%", "")
    figures = re.findall(r"\d+\.\d+(?:e-\d+)?", table)
    assert len(figures) > 8
    assert [figure for figure in figures if figure not in proofs] == []
