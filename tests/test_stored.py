"""Programs kept from one process to the next: found where nothing has changed, and only there."""

import os
import pickle
import sys
import types
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import Perceptron, loop, same_bits, small_config

from jax_cifar.backend import compiler, stored
from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.backend.precision import float64
from jax_cifar.backend.stored import Stored
from jax_cifar.telemetry import read_metrics
from jax_cifar.training import session
from jax_cifar.training.losses import cross_entropy

CONFIG = small_config(train={"compilation_cache": True})
SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty place for programs; and of the sources those that were there before, as in a process of its own."""
    before = [getattr(jax.config, name) for name in SETTINGS]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stored, "_sources", lambda: "the same")
    jax.config.update(SETTINGS[0], None)
    compiler.jax_cache.reset_cache()
    yield tmp_path / "jax_cifar" / "programs"
    for name, value in zip(SETTINGS, before, strict=True):
        jax.config.update(name, value)
    compiler.jax_cache.reset_cache()


@contextmanager
def process():
    """As in a new process of the same experiment."""
    jax.clear_caches()
    with compilation_cache(CONFIG):
        yield


def rows(x):
    """Several functions inside: what a program lacks that was handed out twice."""
    drawn = jax.random.normal(jax.random.fold_in(jax.random.key(0), 3), (8, 8), jnp.float32)
    return (x @ drawn)[1:7:2].sum(0), jnp.sort(x, 1)[:, ::3]


X = np.arange(64, dtype=np.float32).reshape(8, 8)


def run(name: str = "rows", function: Any = rows, experiment: str | None = "a", x: Any = X) -> tuple[Any, bool]:
    """What the program returns, and whether it was found."""
    with process():
        program = Stored(experiment).program(name, jax.jit(function), jnp.asarray(x))
        return program.compile()(jnp.asarray(x)), program.traced is None


def test_a_program_is_found_by_the_next_process_and_gives_the_same_bits():
    first, found = run()
    again, found_again = run()
    assert (found, found_again) == (False, True)
    assert same_bits(first, again)
    assert same_bits(first, jax.jit(rows)(X))


def test_what_jax_found_in_its_own_files_is_kept_whole(folder, monkeypatch):
    """XLA hands such a program out without its functions: it would fail when it is called."""
    jax.config.update(SETTINGS[1], 0.0)
    settings = compiler.jax.config.update
    monkeypatch.setattr(jax.config, "update", lambda name, value: name == SETTINGS[1] or settings(name, value))
    first, _ = run()
    kept = {file for file in folder.iterdir() if not file.name.startswith("jit_")}
    for file in kept:
        file.unlink()
    asked = []
    monkeypatch.setattr(stored, "take_asked", lambda: asked.append(compiler.take_asked()) or asked[-1])
    assert not run()[1]
    assert asked[-1][0] is not None  # JAX found it
    again, found = run()
    assert found and same_bits(first, again)
    # A second experiment of that process gets it from JAX's memory, which hands out the same program.
    function = jax.jit(rows)
    with process():
        for experiment in ("b", "c"):
            program = Stored(experiment).program("rows", function, jnp.asarray(X))
            assert program.traced is not None and same_bits(first, program.compile()(jnp.asarray(X)))
        assert asked[-1] == []
        compiled_elsewhere = jax.jit(lambda x: rows(x))
        compiled_elsewhere.lower(jnp.asarray(X)).compile()
        program = Stored("d").program("rows", compiled_elsewhere, jnp.asarray(X))
        assert same_bits(first, program.compile()(jnp.asarray(X)))
        assert asked[-1] == []
    for experiment in ("b", "c", "d"):
        again, found = run(experiment=experiment)
        assert same_bits(first, again)
        assert found == (experiment != "d")  # of which nobody knows where it came from


def test_only_the_same_is_found(monkeypatch):
    run()
    changes: list[dict[str, Any]] = [
        {"name": "other"},
        {"experiment": "b"},
        {"x": np.concatenate([X, X])},
        {"x": X.astype(np.int32), "function": lambda x: x},
    ]
    for change in changes:
        assert not run(**change)[1]
    assert run()[1]
    with process():
        parts = [Stored("a").part(f"side {side}").program("rows", jax.jit(rows), jnp.asarray(X)) for side in (8, 16)]
        for part in parts:
            part.compile()
        again = [Stored("a").part(f"side {side}").program("rows", jax.jit(rows), jnp.asarray(X)) for side in (8, 16)]
        assert [part.traced is None for part in (*parts, *again)] == [False, False, True, True]


@pytest.mark.parametrize("what", ["_sources", "_processor", "XLA_FLAGS", "precision", "float64", "nothing"])
def test_what_decides_a_program_decides_where_it_is_found(what, monkeypatch):
    with compilation_cache(CONFIG):
        before = stored.machine_and_sources()
        if what.startswith("_"):
            monkeypatch.setattr(stored, what, lambda: "other")
        elif what == "XLA_FLAGS":
            monkeypatch.setenv(what, f"{os.environ.get(what, '')} --xla_cpu_enable_fast_math=false")
        context = {
            "precision": lambda: jax.default_matmul_precision("highest"),
            "float64": float64,
        }.get(what, lambda: contextmanager(lambda: iter([None]))())
        with context():
            assert (stored.machine_and_sources() == before) == (what == "nothing")


def test_a_changed_line_is_another_program(tmp_path, monkeypatch):
    monkeypatch.undo()
    file = tmp_path / "own.py"

    def sources(text, changed_ago=100.0):
        file.write_text(text)
        monkeypatch.setattr(stored, "LOADED", file.stat().st_ctime + changed_ago)
        stored._library_sum.cache_clear()
        return stored._sources()

    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    module = types.ModuleType("own_module")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "own_module", module)
    monkeypatch.setattr(stored, "PACKAGE", tmp_path / "package")
    first = sources("a = 1\n")
    assert first is not None
    assert sources("a = 1\n") == first
    assert sources("a = 2\n") not in (first, None)
    (tmp_path / "package" / "room").mkdir(parents=True)
    (tmp_path / "package" / "room" / "b.py").write_text("b = 1\n")
    library = sources("a = 1\n")
    assert library not in (first, None)
    (tmp_path / "package" / "room" / "b.py").write_text("b = 2\n")
    assert sources("a = 1\n") not in (first, library, None)
    # Of what is installed size and time.
    installed = tmp_path / "site-packages" / "installed.py"
    installed.parent.mkdir()
    installed.write_text("c = 1\n")
    package = types.ModuleType("installed_module")
    package.__file__ = str(installed)
    monkeypatch.setitem(sys.modules, "installed_module", package)
    before = sources("a = 1\n")
    os.utime(installed, ns=(1, 1))
    assert sources("a = 1\n") not in (before, None)
    # Lines that may be others than those that were loaded, and lines that lie in no file.
    assert sources("a = 1\n", changed_ago=4.0) is None
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert sources("a = 1\n") is None
    stored._library_sum.cache_clear()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "no program"])
def test_a_damaged_file_is_made_anew(folder, damage):
    first, _ = run()
    for file in [file for file in folder.iterdir() if not file.name.startswith("jit_")]:
        data = file.read_bytes()
        whole = {"other": pickle.dumps("other"), "no program": pickle.dumps((b"", None, None))}.get(damage)
        if whole is not None:
            stored.ProgramFiles(folder).put(file.stem, whole)
        else:
            file.write_bytes(data[:100] if damage == "cut" else data[:60] + bytes([data[60] ^ 1]) + data[61:])
    again, found = run()
    assert not found and same_bits(first, again)
    assert run()[1]


def test_the_program_of_another_user_is_not_run(monkeypatch):
    run()
    monkeypatch.setattr(compiler, "_trusted", lambda owner: owner != os.getuid())
    assert not run()[1]


@pytest.mark.parametrize(("owner", "good"), [(os.getuid(), True), (0, True), (os.getuid() + 1, False)])
def test_who_may_have_written_a_program(owner, good):
    assert compiler._trusted(owner) == good


def test_nothing_is_kept_where_nothing_may_be(folder, monkeypatch):
    assert not any(run(experiment=None)[1] for _ in range(2))
    Stored("a").program("rows", jax.jit(rows), jnp.asarray(X)).compile()  # outside of `compilation_cache`
    monkeypatch.setattr(stored, "_sources", lambda: None)
    assert not any(run()[1] for _ in range(2))
    assert not folder.exists() or all(file.name.startswith("jit_") for file in folder.iterdir())  # JAX's own


def test_values_are_kept_too():
    made = []
    with process():
        assert [Stored(name).value("size", lambda: made.append(1) or 7) for name in "aab"] == [7, 7, 7]
        assert Stored(None).value("size", lambda: made.append(1) or 8) == 8
    assert len(made) == 3


WEIGHT = 1.0


def weighted(logits, labels):
    """A loss with a number in it that its module may have from anywhere."""
    return WEIGHT * cross_entropy(logits, labels)


def test_code_of_ones_own_is_traced_each_time_with_the_numbers_that_it_holds(tmp_path, folder, monkeypatch):
    config = small_config(model=Perceptron(), train={"steps": 4, "compilation_cache": True, "loss": weighted})
    losses: list[float] = []
    for weight in (1.0, 100.0):
        monkeypatch.setattr(sys.modules[__name__], "WEIGHT", weight)
        jax.clear_caches()
        loop.train(config, tmp_path / str(weight))
        losses.append(read_metrics(tmp_path / str(weight))[0]["loss"])
    assert losses[1] == pytest.approx(100 * losses[0], rel=0.5)
    assert not folder.exists() or all(file.name.startswith("jit_") for file in folder.iterdir())


@pytest.mark.parametrize("resolutions", [(), pytest.param(((16, 0.5), (32, 0.5)), marks=pytest.mark.slow)])
def test_a_run_started_again_traces_nothing_and_ends_with_the_same_bits(tmp_path, monkeypatch, resolutions):
    runs = [
        small_config(
            model={"name": "speedrun_net", "width": 1, "dropout": None} if resolutions else {},
            train={"steps": 8, "resolutions": resolutions, "compilation_cache": cache},
        )
        for cache in (False, True, True)
    ]
    traced = []
    trace = stored.Program.__init__
    monkeypatch.setattr(stored.Program, "__init__", lambda self, *a: traced.append(a[0] is not None) or trace(self, *a))
    results, counts = [], []
    for i, config in enumerate(runs):
        traced.clear()
        jax.clear_caches()
        results.append(loop.train(config, tmp_path / str(i)))
        counts.append((len(traced), sum(traced)))
    assert counts[1][0] == counts[1][1] == counts[2][0] > 4
    assert counts[2][1] == 0
    for other in results[1:]:
        assert same_bits(jax.device_get(results[0].state), jax.device_get(other.state))
        assert other.report.loss == results[0].report.loss


def test_a_seed_draws_what_it_drew():
    """As of a number of Python's, however large."""
    for seed in (0, 7, 2**31, 2**32 - 1):
        with process():
            key = Stored(None).call("run key", jax.jit(session.run_key), np.int64(seed))
        assert same_bits(jax.random.key_data(key), jax.random.key_data(jax.random.key(seed)))
