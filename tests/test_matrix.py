"""`make matrix`: what is installed in its environments, what is refused, and what its page keeps."""

import json
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import flagship
import matrix
import matrix_environments
import pytest
import stamp
from matrix import Count, Page, read_report
from matrix_environments import ENVIRONMENTS, build, extra, find_python, lowest, needed
from packaging.requirements import Requirement

from jax_cifar.errors import ConfigError, UserError
from jax_cifar.progress import progress

ROOT = Path(__file__).parents[1]


def test_the_oldest_environment_has_the_lower_bounds_of_pyproject():
    assert lowest(Requirement("jax>=0.7,<1")) == "jax==0.7"
    assert lowest(Requirement("a>=2; python_version < '4'")) == 'a==2; python_version < "4"'
    names = {one.name for one in needed()}
    assert {"jax", "tensorflow-datasets", "optuna", "onnxruntime", "pytest"} < names
    assert "jax-cifar" not in names and "kubernetes" not in names
    pinned = {pin.partition("==")[0] for pin in ENVIRONMENTS["oldest"].pins}
    assert pinned == names - {"torch", "onnxscript"}
    assert "tensorflow-datasets" in {one.name for one in extra("dev")}


def test_a_python_that_is_missing_is_one_message():
    assert find_python(matrix_environments.HERE).exists()
    with pytest.raises(
        UserError, match=r"There is no python2\.1 on the path or in .*\. Install it: pyenv install 2\.1"
    ):
        find_python("2.1")


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """What pip is asked for, in place of pip; `after` is what an environment then has, time after time."""
    asked, after = [], [{"jax": "0.7.2"}] * 9

    def install(place, *arguments):
        asked.append(" ".join(map(str, arguments)))
        if "--report" in arguments:
            names = ["torch", "nvidia-cudnn"] if place.name == "colab" else ["torch"]
            report = {"install": [{"metadata": {"name": name}} for name in names]}
            Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps(report))

    monkeypatch.setattr(matrix_environments, "PLACE", tmp_path)
    monkeypatch.setattr(matrix_environments, "pip", install)
    monkeypatch.setattr(matrix_environments, "execute", lambda command, place: place.mkdir())
    monkeypatch.setattr(matrix_environments, "installed", lambda python: after.pop(0))
    return SimpleNamespace(asked=asked, after=after)


def test_what_is_preinstalled_comes_first_and_torch_only_without_cuda(pip):
    pip.after[:] = [{"jax": "0.7.2"}, *[{"jax": "0.7.2", "tyro": "1.0"}] * 9]
    built = build("colab", ENVIRONMENTS["colab"]._replace(python=matrix_environments.HERE))
    assert built.added == ("tyro",)
    _, preinstalled, project, report, tests = pip.asked
    assert preinstalled.startswith("--requirement") and "numpy==2.1.3\n" in (built.place / "pins.txt").read_text()
    assert project == f"--editable {ROOT}"
    assert "--dry-run" in report and "torch" in report
    assert " pytest>=" in tests and " onnxruntime" in tests and " torch" not in tests and "onnxscript" not in tests
    build("default", ENVIRONMENTS["default"])
    assert " torch" in pip.asked[-1] and "onnxscript" in pip.asked[-1]


@pytest.mark.parametrize("moment", [1, 2])
def test_an_environment_whose_preinstalled_packages_are_replaced_is_refused(pip, moment):
    pip.after[moment:] = [{"jax": "0.12.0"}] * 9
    with pytest.raises(UserError, match=r"replaces what is preinstalled: jax 0\.7\.2 by 0\.12\.0"):
        build("colab", ENVIRONMENTS["colab"]._replace(python=matrix_environments.HERE))


def test_an_environment_is_made_anew_only_for_another_recipe(pip):
    mine = ENVIRONMENTS["default"]
    first = build("default", mine)
    count = len(pip.asked)
    assert build("default", mine) == first and len(pip.asked) == count
    build("default", mine._replace(pins=("jax==0.8",)))
    assert len(pip.asked) == 2 * count


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good"/>
<testcase classname="tests.test_a" name="test_bad[1 | 2]"><failure message="no"/></testcase>
<testcase classname="" name="tests.test_b"><error message="collection failure"/></testcase>
<testcase classname="" name="tests.test_c"><skipped message="PyTorch is not installed"/></testcase>
</testsuite></testsuites>"""


def test_the_outcomes_of_tests_are_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    found = read_report(tmp_path / "report.xml")
    assert found == Count(1, ("tests.test_a::test_bad[1 | 2]", "tests.test_b"), 1)
    assert str(found) == "1 passed, 2 failed, 1 skipped"
    assert str(Count(1056, (), 0)) == "1,056 passed, 0 failed"


def test_a_row_is_written_and_those_of_other_environments_stay(tmp_path, monkeypatch, capsys):
    versions = {"python": "3.13.0", "jax": "0.7.2", "scikit-learn": "1.6.1"}
    monkeypatch.setattr(matrix, "build", lambda name, environment: matrix.Built(tmp_path, versions, ()))
    monkeypatch.setattr(matrix, "run_tests", lambda built, targets: Count(3, ("test_x",), len(targets)))
    monkeypatch.setattr(matrix, "train_quickstart", lambda built: "99.16%")
    monkeypatch.setattr(matrix, "judge_flagship", lambda built: (["1.0e-12"] * 8, []))
    file = tmp_path / "platforms.md"
    monkeypatch.setattr(stamp, "git_commit", lambda root: f"{'1a2b3c4' * 5}d00dd{'-dirty' * file.exists()}")
    page = Page(file)
    with progress("environments") as bar:
        matrix.fill(page, "oldest", ["tests/test_cli.py"], bar)
        matrix.fill(page, "newest", [], bar)
        matrix.fill(Page(file), "colab", ["tests/test_cli.py"], bar)
    text = file.read_text()
    colab = f"| colab | 3 passed, 1 failed, 1 skipped | - | - | 1a2b3c4-dirty, {date.today().isoformat()} |"
    newest = f"| newest | 3 passed, 1 failed, 1 skipped | - | 99.16% | 1a2b3c4, {date.today().isoformat()} |"
    assert text.index(colab) < text.index(newest)
    assert "- colab: test_x\n- oldest: test_x\n- newest: test_x" in text
    assert "| newest | 1.0e-12 |" in text and "| colab | python 3.13.0, jax 0.7.2, scikit-learn 1.6.1 |" in text
    assert "newest: 3 passed, 1 failed, 1 skipped, -, 99.16%" in capsys.readouterr().out
    Page(file).write()
    assert file.read_text() == text


def test_an_environment_that_there_is_not_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"environment = 'colb' is not allowed: choose of colab, oldest, newest"):
        matrix.main(["colb", "--out", str(tmp_path / "page.md")])


def test_the_page_has_the_networks_and_quantities_of_the_flagship():
    assert tuple(flagship.NETWORKS) == matrix.NETWORKS and flagship.QUANTITIES == matrix.QUANTITIES


def test_a_page_says_what_is_not_measured_yet(tmp_path):
    Page(tmp_path / "page.md").write()
    assert (tmp_path / "page.md").read_text().count("Not measured yet.") == 3


def test_the_page_in_the_repository_is_whole_and_nothing_has_failed():
    found = Page(ROOT / "docs/platforms.md")
    rows = [list(table.lines) for table in found.tables]
    assert rows == [list(ENVIRONMENTS)] * 3, "docs/platforms.md is of other environments: run `make matrix`"
    assert not any(found.failed.values())
    assert all(re.search(r"^\w{7}(-dirty)?, \d{4}-\d\d-\d\d$", line[-1]) for line in found.tables[0].lines.values())
