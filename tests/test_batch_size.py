"""The largest batch that fits: the search, how one size is tried, and what is said where memory runs out."""

import itertools
import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Perceptron, small_config

from jax_cifar import train
from jax_cifar.backend import memory
from jax_cifar.backend.memory import batch_that_fits, naming_the_batch
from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError
from jax_cifar.lab import batch_probe, batch_size
from jax_cifar.lab.batch_size import SLOWEST, Probe, Search, find_batch_size, search, sizes
from jax_cifar.run.clock import Clock
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session

ROOT = Path(__file__).parents[1]


def tried(batch: int, fixed: float, per_image: float, compiler: float, limit: float, seconds: float = 0.001) -> Probe:
    """What becomes of a batch where memory grows linearly, of which the compiler knows a share."""
    needed, measured = compiler * (fixed + per_image * batch), fixed + per_image * batch
    if needed > limit or measured > limit:
        return Probe(batch, False, needed)
    return Probe(batch, True, needed, measured, seconds * batch)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    first=st.integers(1, 3000),
    multiple=st.integers(1, 12),
    most=st.integers(12, 9000),
    fixed=st.floats(0, 2e9),
    per_image=st.floats(1e3, 1e7),
    compiler=st.floats(0.1, 1.5),
)
def test_the_largest_size_that_fits_is_found_in_a_few_tries(first, multiple, most, fixed, per_image, compiler):
    limit, grid = 2.5e9, sizes(multiple, most)

    def probe(batch: int) -> Probe:
        return tried(batch, fixed, per_image, compiler, limit)

    probes = search(probe, probe(multiple * first), grid, limit)
    best = max((p.batch for p in probes if p.fits), default=0)
    assert best >= max((size for size in grid if probe(size).fits), default=0)
    assert len(probes) <= 16


def test_sizes_are_multiples_of_what_the_devices_and_parts_need_and_close_together():
    grid = sizes(6, 5000)
    assert grid[0] == 6 and all(size % 6 == 0 and size <= 5000 for size in grid)
    assert all(after / before <= 1.125 for before, after in itertools.pairwise(grid[7:]))
    assert sizes(512, 100) == []


def test_what_takes_too_long_is_not_tried_however_much_memory_there_is():
    probes = search(lambda batch: tried(batch, 0, 1, 1, 1e12, 0.1), tried(64, 0, 1, 1, 1e12, 0.1), sizes(1, 8192), 1e12)
    assert max(probe.batch for probe in probes) <= SLOWEST / 0.1
    found = Search(sorted(probes, key=lambda probe: probe.batch), 1e12, 1e12, 8192)
    assert found.why_no_larger == ", and an update of more would take over 60 seconds"


@pytest.mark.parametrize(("limit", "tried_first"), [(1000, True), (15, False)])
def test_no_more_than_the_most_is_found_where_more_is_configured(limit, tried_first, monkeypatch):
    def run_probe(arguments, batch, margin, facts):
        facts |= {"there": limit, "parts": 4, "images": 500}
        return tried(batch or 20, 0, 1, 1, limit)

    monkeypatch.setattr(batch_size, "run_probe", run_probe)
    found = find_batch_size(["--config", "x.py"], 0, 0.0, 10)
    assert found.probes[-1].batch == 20 and found.probes[-1].fits is tried_first
    assert found.best is not None and found.best.batch == 8
    assert found.why_no_larger == ", and no more than 10 were to be tried"
    with pytest.raises(ConfigError, match=r"--most = 3 is not allowed: the devices .* need a multiple of 4 images"):
        find_batch_size(["--config", "x.py"], 0, 0.0, 3)


def test_what_is_told_of_the_memory_belongs_together_where_ever_less_is_free(monkeypatch):
    free = itertools.count(1000, -10)

    def run_probe(arguments, batch, margin, facts):
        facts |= {"there": next(free), "parts": 1, "images": 500}
        return tried(batch or 8, 0, 1, 1, 100)

    monkeypatch.setattr(batch_size, "run_probe", run_probe)
    found = find_batch_size(["--config", "x.py"], 0, 0.25, 500)
    assert len(found.probes) > 1 and (found.there, found.limit) == (1000, 750)


@pytest.mark.parametrize(
    ("code", "errors", "fits"),
    [(0, "", True), (3, "", False), (-6, "terminate called", False), (1, "std::bad_alloc", False), (-9, "", False)],
)
def test_how_a_process_ends_says_whether_its_batch_fits(code, errors, fits, monkeypatch):
    lines = [{"batch": 8, "there": 1e9, "needed": 1e8, "parts": 1, "images": 50}, {"measured": 5e8, "seconds": 0.1}]
    output = "\n".join(["a config file's own words", *(f"probe: {json.dumps(line)}" for line in lines[: 1 + fits])])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Ended(code, output, errors))
    facts: dict[str, float] = {}
    probe = batch_size.run_probe(["8"], 8, 0.1, facts)
    assert probe.fits is fits and facts == {"there": 1e9, "parts": 1, "images": 50}
    assert (probe.measured, probe.seconds) == ((5e8, 0.1) if fits else (None, None))


def test_what_is_wrong_with_the_configuration_is_told_as_it_is(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Ended(2, "", "error: data.dir = 'x' is not there"))
    with pytest.raises(ConfigError, match=r"^data.dir = 'x' is not there$"):
        find_batch_size(["--config", "x.py"], 0, 0.1, 64)


class Ended:
    """A process that has ended."""

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.returncode, self.output, self.errors = code, output, errors

    def communicate(self) -> tuple[str, str]:
        return self.output, self.errors

    def terminate(self) -> None:
        pass

    def __enter__(self) -> "Ended":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_the_script_finds_a_batch_that_fits_and_the_command_that_trains_with_it(capsys):
    script = runpy.run_path(str(ROOT / "scripts" / "find_batch_size.py"))
    config = f"--config {ROOT}/configs/quickstart.py --model.width 256"
    script["main"]([*config.split(), "--memory", "2GB", "--most", "1000"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if re.match(r"\| [\d,]+ \|", line)]
    fits = {int(row.split("|")[1].replace(",", "")): "yes" in row for row in rows}
    assert fits
    best = max(batch for batch, fitting in fits.items() if fitting)
    assert lines[-1].endswith(f"{config} --train.batch_size {best}")
    assert all(fitting == (batch <= best) for batch, fitting in fits.items())


def test_one_size_is_compiled_and_run(capsys):
    config = batch_probe.probed(small_config(model=Perceptron(), train={"resolutions": ((16, 0.5), (32, 0.5))}), 16)
    assert config.train.resolutions == ((32, 1.0),) and config.train.batch_size == 16
    batch_probe.probe(config, 1e12, 0.1)
    compiled, ran = (json.loads(line.removeprefix("probe: ")) for line in capsys.readouterr().out.splitlines())
    assert (compiled["batch"], compiled["parts"], compiled["images"]) == (16, 1, 200)
    assert compiled["needed"] > 200 * 32 * 32 * 3 and ran["seconds"] > 0 and ran["measured"] > compiled["needed"]


class Needy:
    """A session whose update takes 95 bytes; there is no training with it."""

    memory = 95.0

    def __init__(self, *_: object) -> None:
        pass

    def start(self, _: object) -> None:
        pass

    def compile(self, state: None, bounded: bool) -> None:
        assert not bounded


def test_what_the_compiler_finds_too_much_is_not_run(capsys, monkeypatch):
    monkeypatch.setattr(batch_probe, "Session", Needy)
    batch_probe.probe(small_config(), there=100, margin=0.1)
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(AttributeError, match="advance"):
        batch_probe.probe(small_config(), there=200, margin=0.1)


def test_a_batch_beyond_the_memory_is_refused_when_compiled_and_names_one_that_fits(monkeypatch):
    config = small_config(model=Perceptron())
    session = Session(config, load_data(config.data), one_run(config), Clock())
    state = session.start([config])
    monkeypatch.setattr("jax_cifar.training.session.device_memory", lambda: session.memory - 1)
    with pytest.raises(
        ConfigError, match=r"train.batch_size = 32 is too large: .* about \d+ should fit, and scripts/find"
    ):
        session.compile(state)


def test_a_run_that_is_refused_for_its_memory_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(Session, "_measure_memory", lambda self, state: vars(self).update(memory=1e18, _stays=0.0))
    with pytest.raises(ConfigError, match=r"train.batch_size = 32 is too large"):
        train(small_config(model=Perceptron()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_out_of_memory_while_training_names_a_batch_that_would_fit(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 2e9)
    expected = r"batch_size = 1,000 is too large.* 3.0 GB, of which 1.0 .*are 2.0: about 450 should fit"
    with pytest.raises(ConfigError, match=expected), naming_the_batch(1000, 3e9, 1e9):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes.")
    with pytest.raises(RuntimeError, match="another"), naming_the_batch(1000, 3e9, 1e9):
        raise RuntimeError("another")


@pytest.mark.parametrize(("there", "fits"), [(2e9, 450), (1e9, 0), (3.1e9, 500), (9e9, 500)])
def test_a_tenth_is_spared_and_of_a_batch_that_should_have_fitted_half_is_said(there, fits):
    assert batch_that_fits(1000, 3e9, 1e9, there) == fits
