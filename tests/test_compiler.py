"""The files of compiled programs: damaged ones are replaced, a folder that cannot be used costs a line, off is off."""

import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.compiler import get_compile_options
from jax.experimental.compilation_cache import compilation_cache
from small_runs import Perceptron, small_config

from jax_cifar.backend import compiler
from jax_cifar.backend.compiler import ProgramFiles
from jax_cifar.data import load_data
from jax_cifar.evaluation import predict
from jax_cifar.run.clock import Clock
from jax_cifar.training import programs
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session

CONFIG = small_config(train={"compilation_cache": True})


SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs are kept, in place of the cache that all tests share."""
    before = [getattr(jax.config, name) for name in SETTINGS]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(SETTINGS[0], None)
    compilation_cache.reset_cache()
    yield tmp_path / "jax_cifar" / "programs"
    for name, value in zip(SETTINGS, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_with_cache(factor=3.0):
    """Compile a small program with the cache switched on, as a new process would; True where it was there."""
    jax.clear_caches()
    found = []
    get = ProgramFiles.get

    def watched(self, key):
        found.append(get(self, key))
        return found[-1]

    with compiler.compilation_cache(CONFIG), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramFiles, "get", watched)
        jax.config.update(SETTINGS[1], 0.0)
        assert float(jax.jit(lambda x: jnp.sin(x) * factor)(jnp.float32(0.5))) == pytest.approx(0.479425538 * factor)
    return bool(found) and None not in found


def flip(data):
    return data[:50] + bytes([data[50] ^ 4]) + data[51:]


def test_a_damaged_program_is_replaced_once_in_silence(folder, capfd):
    assert not compile_with_cache()
    assert compile_with_cache()
    sound = {file: file.read_bytes() for file in folder.iterdir()}
    for damage in (flip, lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"more"):
        for file, data in sound.items():
            file.write_bytes(damage(data))
        assert not compile_with_cache()
        assert compile_with_cache()
    assert set(folder.iterdir()) == sound.keys()
    assert capfd.readouterr() == ("", "")


def test_programs_that_were_used_least_of_late_make_way(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "LARGEST", 400)
    files = ProgramFiles(tmp_path)
    for i, key in enumerate("abc"):
        files.put(key, bytes(100))
        os.utime(tmp_path / f"{key}.program", (i, i))
    assert files.get("a") == bytes(100)
    files.put("d", bytes(100))
    assert [key for key in "abcd" if files.get(key)] == ["a", "c", "d"]


@pytest.mark.parametrize("fault", ["a file in its place", "out of reach", "full"])
def test_a_folder_that_cannot_be_used_costs_a_line(folder, capfd, fault):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "a file in its place":
        folder.parent.write_text("")
    elif fault == "out of reach":
        folder.parent.symlink_to(folder.parent)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        assert not compile_with_cache()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("warning: compiled programs in ") and err.count("\n") == 1
    assert fault != "full" or not os.listdir(folder)


def test_a_cache_of_one_run_is_off_for_the_next_in_the_same_process(folder):
    before = [getattr(jax.config, name) for name in SETTINGS]
    compile_with_cache()
    assert [getattr(jax.config, name) for name in SETTINGS] == before
    files = set(folder.iterdir())
    jax.config.update(SETTINGS[1], 0.0)
    with compiler.compilation_cache(small_config()):
        jax.jit(lambda x: jnp.cos(x) * 5)(jnp.float32(0.5))
    jax.config.update(SETTINGS[1], before[1])
    assert files and set(folder.iterdir()) == files
    compile_with_cache(factor=7.0)
    assert set(folder.iterdir()) > files, "and on again for the one after that"


def test_on_a_gpu_xla_writes_nothing_itself_and_several_processes_keep_nothing(folder, monkeypatch):
    with compiler.compilation_cache(CONFIG):
        options = get_compile_options(1, 1, backend=jax.devices()[0].client)
        debug = options.executable_build_options.debug_options
        assert debug.xla_gpu_per_fusion_autotune_cache_dir == "" == debug.xla_gpu_kernel_cache_file
        assert compiler.files_are_ours()
    monkeypatch.setattr(compiler, "several", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with compiler.compilation_cache(CONFIG):
        assert not compiler.files_are_ours() and not getattr(jax.config, SETTINGS[0])


def test_a_cache_that_the_user_chose_is_left_to_jax(folder, tmp_path):
    jax.config.update(SETTINGS[0], str(tmp_path / "own"))
    assert not compile_with_cache()
    assert os.listdir(tmp_path / "own") and not folder.exists()


@pytest.mark.parametrize(("backend", "expected"), [("gpu", compiler.GPU_DETERMINISTIC), ("tpu", {})])
def test_only_a_gpu_has_to_be_told_to_be_deterministic(monkeypatch, backend, expected):
    here = compiler.compiler_options()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: backend)
        assert compiler.compiler_options(deterministic=True) == expected
        assert compiler.compiler_options(deterministic=False) == {}
    assert compiler.compiler_options() == here != {}


@pytest.mark.parametrize(
    ("flags", "after"),
    [
        (None, compiler.NO_UNROLLING),
        (" --xla_a=1", f"--xla_a=1 {compiler.NO_UNROLLING}"),
        (compiler.NO_UNROLLING, compiler.NO_UNROLLING),
        ("--xla_backend_extra_options=other", "--xla_backend_extra_options=other"),
        ("flags.txt", "flags.txt"),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_no_loop_is_unrolled_unless_the_user_has_such_options_or_has_used_jax(monkeypatch, flags, after, used):
    monkeypatch.setattr(compiler.xla_bridge, "backends_are_initialized", lambda: used)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    compiler.unroll_no_loops()
    assert os.environ.get("XLA_FLAGS") == (flags if used else after)


@pytest.mark.parametrize(("backend", "told"), [("cpu", f"--xla_a=1 {compiler.NO_UNROLLING}"), ("gpu", "--xla_a=1")])
def test_what_only_a_cpu_minds_is_told_of_a_cpu_alone(monkeypatch, backend, told):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 {compiler.NO_UNROLLING}")
    assert compiler.xla_flags() == told


def test_xla_takes_notice_of_it():
    code = "import jax_cifar.backend.compiler; from jax._src.compiler import get_compile_options\n"
    code += "print(get_compile_options(1, 1).SerializeAsString())"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "xla_cpu_disable_loop_unrolling" in done.stdout


def test_a_program_sees_the_weights_that_came_to_the_place_of_others():
    # As evaluation sees those of every epoch. jaxlib 0.7 does not, by itself, where they are many.
    multiply = jax.jit(lambda images, weights: images @ weights, compiler_options=compiler.compiler_options())
    halve = jax.jit(lambda weights: weights / 2, donate_argnums=0)
    images, weights = jnp.ones((359, 1024)), jnp.ones((1024, 64))
    first, place = np.asarray(multiply(images, weights)), weights.unsafe_buffer_pointer()
    weights = halve(weights)
    assert weights.unsafe_buffer_pointer() == place
    np.testing.assert_array_equal(multiply(images, weights), first / 2)


def test_training_and_evaluation_are_compiled_as_the_run_says(monkeypatch):
    asked = []
    for place in (programs, predict):
        monkeypatch.setattr(place, "compiler_options", lambda deterministic=False: asked.append(deterministic) or {})
    config = small_config(model=Perceptron(), train={"deterministic": True})
    session = Session(config, load_data(config.data), one_run(config), Clock())
    session.compile(session.start([config]))
    assert asked == [True, True]
