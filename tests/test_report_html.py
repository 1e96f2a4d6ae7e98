"""The HTML page of runs: what it shows, of whatever a run folder holds; and that names of a stranger stay text."""

import base64
import hashlib
import json
import re
import runpy
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jax_cifar.data import load_data
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.evaluation.calibration import calibrate
from jax_cifar.files import read_record, write_record
from jax_cifar.lab.page import html_report
from jax_cifar.run import load
from jax_cifar.telemetry.html.charts import Curve, line_chart, linear_axis, log_axis
from jax_cifar.telemetry.html.classes import Judged, class_table, confused_pairs, heat_map
from jax_cifar.telemetry.html.markup import VOID, tag
from jax_cifar.telemetry.html.page import report_page
from jax_cifar.telemetry.html.sections import environment, figures
from jax_cifar.telemetry.html.shown import Shown

ROOT = Path(__file__).parents[1]
HOSTILE = ("<script>alert(1)</script>", "</style><img src=x onerror=alert(1)>", "\" onload='alert(1)' \\u2028")
SECTIONS = ["curves", "classes", "how-sure-it-is", "most-confident-mistakes", "first-layer-filters"]
SECTIONS += ["configuration", "where-the-time-went", "environment"]


class Page(HTMLParser):
    """What a page holds, and that its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text, self.inside = [], [], "", {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.inside.setdefault(self.open[-1], []).append(data)
        else:
            self.text += data

    def all(self, name):
        return [attributes for element, attributes in self.elements if element == name]


def change(path, **values):
    """Other values in a record of a run folder."""
    record = read_record(path)
    record.pop("sha256", None)
    write_record(path, record | values)


@pytest.fixture(scope="module")
def hostile_run(finished_run, tmp_path_factory):
    """A finished run whose labels, environment and log were written by a stranger."""
    folder = tmp_path_factory.mktemp("hostile") / "<b>run"
    shutil.copytree(finished_run.workdir, folder)
    names = [f"{HOSTILE[i % 3]}{i}" for i in range(10)]
    change(folder / "network.json", label_names=names)
    report = read_record(folder / "report.json")["per_class"]
    change(folder / "report.json", per_class=dict(zip(names, report.values(), strict=True)))
    change(folder / "environment.json", argv=["train.py", HOSTILE[0]], platform=HOSTILE[1], versions=HOSTILE)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, "epoch": 2.5, "split": "train", "loss": HOSTILE[0], "lr": [1]}) + "\n")
    return folder


@pytest.fixture(scope="module")
def text(hostile_run):
    names = tuple(read_record(hostile_run / "network.json")["label_names"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_data", lambda config: replace(load_data(config), label_names=names))
        return html_report([hostile_run])


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_a_page_has_every_part_of_a_run(page):
    assert [attributes["id"] for attributes in page.all("section")] == SECTIONS
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{name}" for name in SECTIONS]
    charts = [
        attributes["aria-label"].split(" by epoch")[0] for attributes in page.all("svg") if "tabindex" in attributes
    ]
    assert charts[:5] == ["Loss", "Accuracy", "Learning rate", "Gradient norm", "Update / weights"]
    assert "Expected calibration error" in page.text and "sure" in page.text and "4 filters of 3 x 3" in page.text
    assert page.text.count("train_many") == 0 and "optim.nesterov" in page.text
    assert 12 <= len([image for image in page.all("img") if image["alt"].startswith("Test image ")]) <= 24


def test_names_of_a_stranger_are_text_and_nothing_else(page):
    for name in HOSTILE[:2]:
        assert name in page.text
    assert HOSTILE[2].split("\\")[0] in page.text
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("b")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_a_page_can_load_and_run_nothing_but_its_own(page):
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    for kind in ("script", "style"):
        digest = hashlib.sha256(page.inside[kind][0].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    addresses = [value for _, each in page.elements for name, value in each.items() if name in ("src", "href")]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not [each for _, each in page.elements if "style" in each]
    assert "http:" not in "".join(page.inside["style"]) and "url(" not in "".join(page.inside["style"])


def test_a_page_is_small(text):
    assert 30_000 < len(text.encode()) < 1_000_000


def test_an_unfinished_run_is_shown_as_far_as_it_got(hostile_run, tmp_path):
    folder = shutil.copytree(hostile_run, tmp_path / "unfinished")
    shutil.rmtree(folder / "checkpoints")
    for name in ("summary.json", "report.json", "environment.json"):
        (folder / name).unlink()
    page = Page(html_report([folder]))
    assert "Mind that it is not finished: it holds no summary.json." in page.text
    assert "As far as it got: epoch 2" in page.text and "holds no last checkpoint" in page.text
    change(folder / "config.json", name=HOSTILE[0], no_such_section={"a": HOSTILE[1]})
    assert HOSTILE[0] in Page(html_report([folder])).text
    assert [attributes["aria-label"][:4] for attributes in page.all("svg") if "tabindex" in attributes][:1] == ["Loss"]


def test_runs_side_by_side_tell_what_differs_and_which_are_seeds_of_one_experiment(finished_run, tmp_path):
    folders = [shutil.copytree(finished_run.workdir, tmp_path / name) for name in ("first", "second", "third")]
    for folder, seed, rate in zip(folders, (0, 7, 0), (0.05, 0.05, 0.3), strict=True):
        shutil.rmtree(folder / "checkpoints")
        config = read_record(folder / "config.json")
        train, optim = config["train"] | {"seed": seed}, config["optim"] | {"lr": rate}
        change(folder / "config.json", train=train, optim=optim)
        change(folder / "summary.json", test_accuracy=0.5 + rate)
    page = Page(html_report([*folders, folders[0]]))
    assert len(page.all("details")) >= 3 and "3 runs of small" in page.text
    assert "2 runs are the same experiment, small, but for their seeds: 55.00% (sd 0.00%)." in page.text
    assert "fieldABCoptim.lr0.050.050.3train.seed070Each run" in re.sub(r"\s+", " ", page.text).replace("> ", "")
    assert page.text.count("(best)") == 1 and "80.00\N{NO-BREAK SPACE}% (best)" in page.text


def test_a_run_without_anything_but_a_name_is_a_page():
    page = Page(
        report_page([Shown("bare", "/nowhere", "it is not finished", unseen="no data", no_filters="no network")])
    )
    assert "It has logged nothing yet." in page.text and "It logged no figures." in page.text
    assert page.text.count("no data") == 3 and "no network" in page.text


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["scripts/train.py", "--config", "my runs.py"], "python scripts/train.py --config 'my runs.py'"),
        (["/lib/ipykernel_launcher.py", "-f", "/tmp/kernel-1.json"], None),
        (["/lib/colab_kernel_launcher.py", "-f", "/tmp/kernel-1.json"], None),
        (["/usr/bin/ipython"], None),
        (["-c"], None),
        ([""], None),
    ],
)
def test_the_command_that_makes_a_run_again_is_a_scripts(argv, command):
    found = Page(environment(Shown("run", "runs/run", environment={"argv": argv, "process_count": 2})))
    assert found.text.partition("To make it again, on this commit:")[2] == (command or "")
    assert "Processes2" in found.text and "Host" not in found.text


@pytest.mark.parametrize("values", [[np.nan] * 3, [0.0, 0.0, 0.0], [1e-8, 1.0, 1e8], [-1.0, np.nan, 5.0], [2.0]])
def test_a_chart_draws_whatever_finite_values_there_are(values):
    drawn = line_chart("Loss", [Curve("train", np.arange(len(values)) / 2, np.array(values), 0)])
    assert (drawn is None) == bool(np.isnan(values).all())
    if drawn is not None:
        path = next(attributes for attributes in Page(drawn).all("path") if "data-x" in attributes)
        finite = int(np.isfinite(values).sum())
        assert len(re.findall(r"[ML][\d.]+ [\d.]+", path["d"])) == len(path["data-x"].split()) == finite
        assert len(path["data-y"].split("|")) == finite and "nan" not in drawn


def test_a_gap_in_a_curve_is_not_bridged():
    drawn = line_chart("Loss", [Curve("train", np.arange(5.0), np.array([1, 2, np.nan, 3, 4]), 0)])
    path = next(attributes for attributes in Page(drawn).all("path") if "data-x" in attributes)
    assert [piece for piece in re.findall("[ML]", path["d"])] == ["M", "L", "M", "L"]


def test_ticks_are_round_and_within_the_axis():
    assert linear_axis(0, 10).ticks == (0, 2, 4, 6, 8, 10)
    assert linear_axis(0.31, 0.92).ticks == (0.4, 0.6, 0.8)
    assert log_axis(0.03, 2).ticks == (0.05, 0.1, 0.2, 0.5, 1, 2)
    np.testing.assert_allclose(log_axis(0.01, 1).place(np.array([0.01, 0.1, 1.0, -3.0])), [0, 0.5, 1, 0], atol=1e-12)


def test_a_heat_map_of_a_hundred_classes_is_small_and_holds_every_count():
    rng = np.random.default_rng(0)
    confusion = rng.poisson(0.4, (100, 100)) + 60 * np.eye(100, dtype=np.int64)
    names = tuple(f"class {i}" for i in range(100))
    drawn = heat_map(confusion, names)
    svg = Page(drawn).all("svg")[0]
    counts = np.zeros_like(confusion)
    for row, column, count in json.loads(svg["data-counts"]):
        counts[row, column] = count
    np.testing.assert_array_equal(counts, confusion)
    assert len(drawn) < 200_000 and len(Page(drawn).all("path")) < 30
    table = class_table(Judged(names, *np.full((3, 100), 0.5), confusion=confusion))
    assert "The 15 worst classes" in table and "The other 85 classes" in table


@pytest.mark.parametrize(("classes", "told"), [(5, False), (6, True)])
def test_the_top_five_of_five_classes_or_fewer_are_not_told(classes, told):
    names, shares = tuple(map(str, range(classes))), np.full((3, classes), 0.5)
    judged = Judged(names, *shares, confusion=np.eye(classes, dtype=int))
    shown = figures(Shown("run", "runs/run", summary={"test_top5": 1.0, "test_loss": 0.5}, judged=judged))
    assert ("Top-5 accuracy" in str(shown), "Test loss" in str(shown)) == (told, True)


def test_a_class_that_is_neither_there_nor_predicted_is_not_among_the_worst():
    shares = np.array([0.0, 0.9, 0.5])
    table = class_table(Judged(("ghost", "cat", "dog"), shares, shares, shares, np.diag([0, 9, 5])))
    assert re.findall(r"ghost|cat|dog", table) == ["dog", "cat", "ghost"]
    assert Page(table).text.rpartition("ghost")[2] == "---0"


def test_pairs_are_told_in_the_order_of_their_share_of_the_true_class():
    confusion = np.array([[8, 2, 0], [0, 30, 10], [1, 0, 99]])
    items = Page(confused_pairs(confusion, ("cat", "dog", "frog"))).text
    order = [items.index(pair) for pair in ("dog taken for frog25.0", "cat taken for dog20.0", "frog taken for cat1.0")]
    assert order == sorted(order)
    assert confused_pairs(np.diag([3, 4]), ("cat", "dog")) is None


def luminance(color):
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_of_the_page_contrast_as_wcag_aa_asks_for_in_both_schemes():
    styles = [(ROOT / "jax_cifar/telemetry/html" / name).read_text() for name in ("palette.css", "report.css")]
    blocks = [re.findall(r":root \{(.*?)\}", css, re.S) for css in styles]
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", "".join(pair))) for pair in zip(*blocks, strict=True))
    assert light.keys() == dark.keys() and len(light) > 15
    for colors in (light, dark):
        for name in ("ink", "quiet", "accent", "fault", *(f"s{i}" for i in range(8))):
            assert contrast(colors[name], colors["paper"]) >= 4.5, name
        for name in ("bar0", "bar1", "bar2"):
            assert contrast(colors[name], colors["paper"]) >= 3, name
        for name in ("right", "wrong"):  # counts are written on them
            assert contrast(colors[name], colors["ink"]) >= 4.5, name


def test_what_is_no_markup_is_escaped_and_what_is_stays():
    assert tag("p", "<&\"'", tag("i", 3), None, [1, ["a"]], class_="x<", data_x=True, tabindex=0, id=None) == (
        '<p class="x&lt;" data-x tabindex="0">&lt;&amp;&quot;&#x27;<i>3</i>1a</p>'
    )
    assert tag("p", "\x1b\u202e\udcff") == "<p>\\x1b\\u202e\\udcff</p>"


def test_calibration_is_what_its_definition_says():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(500, 4)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = rng.integers(0, 4, 500)
    error, counts = 0.0, []
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    for i in range(15):
        inside = (sure > i / 15) & (sure <= (i + 1) / 15)
        counts.append(inside.sum())
        if inside.any():
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    found = calibrate(probabilities, labels)
    assert found.counts.tolist() == counts
    np.testing.assert_allclose([found.error, found.bias], [error, sure.mean() - right.mean()], rtol=1e-12)
    certain = calibrate(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    assert (certain.counts[-1], certain.error) == (3, pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="do not fit"):
        calibrate(probabilities[:0], labels[:0])


def test_the_command_writes_a_page_and_refuses_another_kind_of_file(finished_run, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "scripts/report.py"))["main"]
    folder = shutil.copytree(finished_run.workdir, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    main(["html", "--workdir", str(folder)])
    assert f"written {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    for wrong in ("model.onnx", "missing/page.html"):
        with pytest.raises(ConfigError, match="--out"):
            main(["html", "--workdir", str(folder), "--out", str(tmp_path / wrong)])
    with pytest.raises(CheckpointError, match="typo is no run folder"):
        main(["html", "--workdir", str(tmp_path / "typo")])
