"""What the pages for users name and show is there: files, headings, options, rooms, faults and figures."""

import re
import runpy
import shlex
import sys
import tomllib

import faults
import mutants
import pytest
from fixtures import WITHOUT_TORCH
from pages import ROOT, SCRIPTS, TEXT, blocks, commands, definitions

from jax_cifar.config.files import field_types
from jax_cifar.errors import ConfigError
from jax_cifar.training import loop, many


def test_a_page_and_a_script_name_only_files_that_exist():
    named = r"\b((?:configs|scripts|docs|tests|parity_tests|benchmarks|jax_cifar)/[\w/]+\.\w+)"
    for name, text in (TEXT | SCRIPTS).items():
        for path in re.findall(named, re.sub(r"https?://\S+", "", text)):
            assert (ROOT / path).exists(), f"{name}: {path}"


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
    elif words[0] == "scripts/benchmark.py" and words[1] != "SUITE" and not WITHOUT_TORCH:
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        main = runpy.run_path(str(target))["main"]
        monkeypatch.setitem(main.__globals__, "measure", lambda suite, options: None)
        main(words[1:])
    elif words[0].startswith("scripts/"):
        known = script_options(target.name) | {f"--{name}" for name in field_types()} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_run_that_help_and_readme_start_from_is_one_of_the_same_network(monkeypatch):
    configs = []
    monkeypatch.setattr(loop, "train", lambda config, *arguments, **options: configs.append(config))
    main = runpy.run_path(str(ROOT / "scripts/train.py"))["main"]
    first, second = [line.strip() for line in SCRIPTS["train.py"].splitlines() if "runs/try" in line]
    for command in (first, second):
        main(shlex.split(command)[2:])
    assert "--init-from" in second and configs[0].model == configs[1].model
    assert second.replace("runs/try", "DIR") in TEXT["README.md"]


@pytest.mark.parametrize("page", sorted(TEXT))
def test_no_two_trainings_of_a_page_have_one_folder(page):
    in_shell = r"^ *python scripts/train\.py (?!.*--distributed).*--workdir (\S+)"
    in_python = r"^ *(?:\w+ = )?train\(.*, \"(runs/[^\"]+)\""
    text = "".join(blocks(page) + blocks(page, "python"))
    folders = re.findall(in_shell, text, re.MULTILINE) + re.findall(in_python, text, re.MULTILINE)
    assert sorted(folders) == sorted(set(folders)), "the second finds the first one's run there"


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


def test_the_page_for_users_of_pytorch_is_python_and_names_tests_that_there_are():
    compile("\n".join(blocks("from-pytorch.md", "python")), "from-pytorch.md", "exec")
    tests = {path.name: path.read_text() for path in (ROOT / "parity_tests").glob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", TEXT["from-pytorch.md"])
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in tests[file] if name else file in tests, f"{file}::{name}"


def figures(text):
    """Whole figures of a text, as they are written, and whole numbers of seconds; those of versions are none."""
    number = r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+(?:e-\d+)?|\d+e-\d+|\d+(?= m?s\b))(?![\w.]*\d)"
    return set(re.findall(number, text.replace("**", "")))


@pytest.mark.parametrize("page", ["techniques.md", "cpu.md"])
def test_the_pages_of_figures_show_none_that_is_not_in_the_records(page):
    records = "".join((ROOT / name).read_text() for name in ("RESULTS.md", "experiments.md", "docs/parity.md"))
    text, _, recipes = TEXT[page].partition("## Whole recipes")
    text += re.sub(r"^(\|[^|]*\|[^|]*\|)[^|]*\|", r"\1", recipes, flags=re.MULTILINE)  # but for the published ones
    shown = figures(re.sub(r"`[^`]*`", "", text))
    assert len(shown) > 40
    assert sorted(shown - figures(records)) == []


def test_the_readme_shows_no_figure_that_results_do_not_have():
    table = TEXT["README.md"].partition("## The first five minutes")[0]
    proofs = "".join((ROOT / name).read_text() for name in ("RESULTS.md", "docs/parity.md"))
    shown = figures(re.sub(r"`[^`]*`", "", table))
    assert len(shown) > 8
    assert sorted(shown - figures(proofs)) == []
