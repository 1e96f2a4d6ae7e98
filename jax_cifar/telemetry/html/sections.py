"""The parts of the page that show one run."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from jax_cifar.telemetry.html.charts import line_chart as chart
from jax_cifar.telemetry.html.charts import percent, reliability_chart
from jax_cifar.telemetry.html.classes import FEW, class_table, confused_pairs, heat_map
from jax_cifar.telemetry.html.markup import Child, Markup, tag
from jax_cifar.telemetry.html.pictures import filter_image, mistake_grid
from jax_cifar.telemetry.html.shown import Reliability, Shown

TEST, TRAIN, VALIDATION = 0, 1, 2  # colours
FEW_IMAGES = 100  # of which calibration says little


def run_sections(run: Shown, level: int = 2) -> dict[str, Markup]:
    """The sections of a run by their headings, which are of this level; those of level 2 have an address."""
    parts = {
        "Curves": curves(run),
        "Classes": classes(run),
        "How sure it is": reliability(run),
        "Most confident mistakes": mistakes(run),
        "First-layer filters": filters(run),
        "Configuration": configuration(run),
        "Where the time went": timings(run),
        "Environment": environment(run),
    }
    return {
        title: tag("section", tag(f"h{level}", title), body, id=address(title) if level == 2 else None)
        for title, body in parts.items()
        if body is not None
    }


def address(title: str) -> str:
    """The name by which a link leads to a section."""
    return title.lower().replace(" ", "-")


def verdict(run: Shown) -> Markup:
    """What came out, in a sentence or two."""
    accuracy, name = run.figure("test_accuracy"), str(run.summary.get("dataset") or run.fields.get("data.name", ""))
    if accuracy is None:
        return tag("p", _so_far(run), class_="verdict")
    count = None if run.judged is None else int(run.judged.confusion.sum())
    images = "test images" if count is None else f"{count:,} test images"
    said = ["Right for ", tag("strong", percent(accuracy)), f" of the {images} of {name}"]
    epochs, seconds = run.figure("epochs"), run.figure("seconds", "train")
    if epochs is not None and seconds is not None:
        said.append(f", after {epochs:g} epochs in {duration(seconds)} of training")
    return tag("p", said, ".", class_="verdict")


def _so_far(run: Shown) -> str:
    epoch = run.curve("train", "loss", TRAIN).xs
    return f"As far as it got: epoch {epoch[-1]:.3g}." if len(epoch) else "It has logged nothing yet."


def duration(seconds: float) -> str:
    """Seconds as a person says them: `1.5 s`, `21 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def figures(run: Shown) -> Markup | None:
    """The figures of the summary, each with its name."""
    forms = {
        "Test loss": (("test_loss",), "{:.4f}".format),
        "Top-5 accuracy": (("test_top5",), percent),
        "With test-time augmentation": (("test_accuracy_tta",), percent),
        "Train accuracy": (("train_accuracy",), percent),
        "Best on validation": (("best_validation_accuracy",), percent),
        "Parameters": (("parameters",), "{:,.0f}".format),
        "Images per second": (("images_per_second",), "{:,.0f}".format),
    }
    if run.judged is not None and len(run.judged.label_names) <= 5:  # of which the five likeliest are always right
        del forms["Top-5 accuracy"]
    told = {name: form(value) for name, (path, form) in forms.items() if (value := run.figure(*path)) is not None}
    total = run.figure("seconds", "total")
    told |= {} if total is None else {"From start to end": duration(total)}
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in told.items()), class_="figures")


def curves(run: Shown) -> Markup:
    """Loss, accuracy, and what was logged of the updates."""
    parts = (("test", TEST), ("validation", VALIDATION), ("train", TRAIN))
    loss, accuracy = ([run.curve(split, name, color) for split, color in parts] for name in ("loss", "accuracy"))
    momentum = run.curve("train", "momentum", TRAIN, "momentum", noisy=False)
    large = (chart("Loss", loss), chart("Accuracy", accuracy, "share"))
    small = (
        chart("Learning rate", [run.curve("train", "lr", TRAIN, "rate", noisy=False)], "plain"),
        chart("Momentum", [momentum], "plain") if len(set(momentum.ys.tolist())) > 1 else None,
        chart("Gradient norm", [run.curve("train", "gradient_norm", TRAIN, "norm")]),
        chart("Update / weights", [run.curve("train", "update_ratio", TRAIN, "ratio")]),
    )
    if not any(each is not None for each in (*large, *small)):
        return _note("It logged no figures.")
    return tag("div", tag("div", large, class_="charts"), tag("div", small, class_="charts small"))


def classes(run: Shown) -> Markup | None:
    """The confusion matrix, what is confused, and a row for each class."""
    if run.judged is None:
        return _note(run.unseen or "The run recorded no figures of its classes.")
    matrix, names = run.judged.confusion, run.judged.label_names
    beside = tag(
        "div",
        heat_map(matrix, names),
        confused_pairs(matrix, names),
        class_="beside" if len(names) <= FEW else "beside wide",
    )
    return tag("div", beside, class_table(run.judged))


def reliability(run: Shown) -> Markup:
    """The reliability diagram, and what it says."""
    found = run.reliability
    if found is None:
        return _note(run.unseen or "")
    drawn = reliability_chart(found.edges, found.counts, found.confidence, found.accuracy)
    caption = tag(
        "figcaption",
        tag("strong", "Reliability"),
        " ",
        tag(
            "span",
            "Bars: the share that was right. Outlined: how far that is from what the network believed, the diagonal.",
        ),
    )
    figure = tag("figure", caption, drawn, class_="chart")
    return tag("div", figure, tag("div", _of_reliability(found)), class_="beside")


def _of_reliability(found: Reliability) -> list[Markup]:
    count = int(found.counts.sum())
    leaning = "too sure of itself" if found.bias > 0 else "less sure of itself than it may be"
    bias = f"On average it is {leaning}, by {100 * abs(found.bias):.2f} points."
    error = [
        "Expected calibration error ",
        tag("strong", percent(found.error)),
        f" over {count:,} test images.",
    ]
    few = tag("p", f"Of {count} images it says little.") if count < FEW_IMAGES else None
    definition = f"{len(found.counts)} bins of equal width; distances weighted by the images in a bin."
    rows = (
        [f"{100 * low:.0f} to {percent(high, 0)}", f"{n:,}", percent(sure, 1), percent(right, 1)]
        for low, high, n, sure, right in zip(
            found.edges[:-1], found.edges[1:], found.counts, found.confidence, found.accuracy, strict=True
        )
        if n
    )
    table = data_table(["how sure", "images", "mean", "right"], rows)
    folded = tag("details", tag("summary", "The bins as a table"), table)
    return [tag("p", error), tag("p", bias), *([few] if few else []), tag("p", definition, class_="quiet"), folded]


def mistakes(run: Shown) -> Markup:
    """Test images of which the network was most sure, and wrong."""
    if run.mistakes:
        return mistake_grid(run.mistakes)
    return _note(run.unseen or "There are none: every test image was recognised.")


def filters(run: Shown) -> Markup:
    """The first convolution's filters."""
    if not run.filters:
        return _note(run.no_filters or "")
    height, width, channels = run.filters[0].shape
    told = (
        f"{len(run.filters)} filters of {height} x {width} over {channels} channels, each from its least to its most."
    )
    return tag("div", tag("p", told, class_="quiet"), filter_image(run.filters))


def configuration(run: Shown) -> Markup:
    """What differs from the defaults; all fields below, folded."""
    differing = [[name, value, run.defaults.get(name, "")] for name, value in run.fields.items() if _differs(run, name)]
    shown = (
        data_table(["field", "value", "default"], differing) if differing else _note("All fields have their defaults.")
    )
    every = data_table(["field", "value"], run.fields.items())
    return tag("div", shown, tag("details", tag("summary", f"All {len(run.fields)} fields"), every))


def _differs(run: Shown, name: str) -> bool:
    return run.fields[name] != run.defaults.get(name)


def timings(run: Shown) -> Markup | None:
    """The seconds of every kind of work, as bars."""
    recorded = run.summary.get("seconds")
    names = list(recorded) if isinstance(recorded, Mapping) else []
    parts = {name: value for name in names if name != "total" and (value := run.figure("seconds", name)) is not None}
    total = run.figure("seconds", "total")
    if not parts or not total:
        return None
    parts["other"] = max(0.0, total - sum(parts.values()))
    rows = (
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", _bar(value / total), class_="bars"),
            tag("td", f"{value:.1f} s", class_="number"),
            tag("td", percent(value / total, 0), class_="number"),
        )
        for name, value in parts.items()
    )
    end = tag("tr", tag("th", "total", scope="row"), tag("td"), tag("td", f"{total:.1f} s", class_="number"), tag("td"))
    return _scrolled(tag("table", tag("tbody", rows, end), class_="times"), "Seconds")


def _bar(share: float) -> Markup:
    bar = tag("rect", width=100 * min(1.0, share), height=8, class_="b0")
    return tag("svg", bar, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def environment(run: Shown) -> Markup:
    """Devices, versions, commit, and the command that makes the run again, where a script made it."""
    found = run.environment
    devices, versions = (found.get(name) for name in ("devices", "versions"))
    told = {
        "Devices": _pairs(devices, lambda name, count: f"{count} x {name}"),
        "CPU cores": found.get("cpu_count"),
        "Processes": found.get("process_count"),
        "System": found.get("platform"),
        "Versions": _pairs(versions, lambda name, version: f"{name} {version}"),
        "Commit": found.get("commit"),
        "Seed": run.fields.get("train.seed"),
        "Folder": run.folder,
    }
    rows = (
        tag("div", tag("dt", name), tag("dd", str(value))) for name, value in told.items() if value not in (None, "")
    )
    argv = found.get("argv")
    command = None
    if isinstance(argv, list) and argv and not _typed_in(str(argv[0])):
        line = "python " + shlex.join(map(str, argv))
        command = [tag("p", "To make it again, on this commit:"), tag("pre", line, tabindex=0)]
    return tag("div", tag("dl", rows, class_="facts"), command)


def _typed_in(program: str) -> bool:
    """Whether what ran was typed into a notebook or an interpreter, whose command would not run it again."""
    name = PurePath(program).name
    return name in ("", "-c", "-", "ipython", "ipython3") or name.endswith("kernel_launcher.py")


def _pairs(values: Any, form: Any) -> str:
    return ", ".join(form(*pair) for pair in values.items()) if isinstance(values, Mapping) else ""


def data_table(head: Sequence[str], rows: Any, label: str = "Table", kind: str | None = None) -> Markup:
    """A table whose first column names its rows, in a box that scrolls where it is too wide; `kind` is its class."""
    heads = tag("tr", (tag("th", name, scope="col") for name in head))
    body = (tag("tr", tag("th", first, scope="row"), (tag("td", cell) for cell in rest)) for first, *rest in rows)
    return _scrolled(tag("table", tag("thead", heads), tag("tbody", body), class_=kind), label)


def _scrolled(table: Child, label: str) -> Markup:
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")
