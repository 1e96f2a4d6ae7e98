"""What the environment asks of JAX and of Python: a run works as it would without, or one message says why not."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from small_runs import small_config

from jax_cifar import load_config
from jax_cifar.backend import mesh
from jax_cifar.backend.mesh import find_devices
from jax_cifar.errors import ConfigError
from jax_cifar.run.load import load_run
from jax_cifar.telemetry.environment import environment
from jax_cifar.training.loop import train
from jax_cifar.training.many import train_many

ROOT = Path(__file__).parents[1]
SMALL = (
    "train.steps=2",
    "train.batch_size=8",
    "data.subset=40",
    "model.width=2",
    "log.plots=false",
    "data.name=synthetic",
)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'x' (set JAX_...)")])
def test_devices_that_are_not_here_are_one_message(monkeypatch, tmp_path, error):
    def fail():
        raise error

    # What else asks for them.
    for name in ("devices", "process_index", "process_count"):
        monkeypatch.setattr(jax, name, fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    message = (
        r"JAX finds no devices with JAX_PLATFORMS=cuda.*: (they are not here|Unable to initialize backend 'x')\. Unset"
    )
    for use in (
        find_devices,
        lambda: train(small_config(), tmp_path / "run"),
        lambda: train_many([small_config()]),
        lambda: load_run(tmp_path),
        lambda: load_config("configs/cifar10_speedrun.py"),
        environment,
    ):
        with pytest.raises(ConfigError, match=message):
            use()
    assert not (tmp_path / "run").exists()


CLOSE = " (set JAX_PLATFORMS='' to automatically choose an available backend)"


# As JAX, XLA and libtpu have said it to their users.
@pytest.mark.parametrize(
    ("told", "way_out"),
    [
        (
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 2718466. Not"
            " attempting to load libtpu.so in this process." + CLOSE,
            r"process with pid 2718466\. Not .* in this process\. End that process; in a notebook restart the session",
        ),
        (
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by another process probably owned"
            ' by another user. Run "$ sudo lsof -w /dev/accel0" to figure out which process is using the TPU.' + CLOSE,
            r"using the TPU\. End that process;",
        ),
        (
            "Unable to initialize backend 'tpu': ABORTED: Internal error when accessing libtpu multi-process lockfile."
            ' Run "$ sudo rm /tmp/libtpu_lockfile".' + CLOSE,
            r"sudo rm /tmp/libtpu_lockfile\"\. A process that was killed has left that file\. Remove it when no other",
        ),
        (
            "Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible GPU devices." + CLOSE,
            r"No visible GPU devices\. Where nvidia-smi shows a GPU, its driver, .* do not fit",
        ),
        (
            "Unable to initialize backend 'cuda': INVALID_ARGUMENT: Mismatched PJRT plugin PJRT API version (0.54) and"
            " framework PJRT API version 0.51)." + CLOSE,
            r"version \(0\.54\) and framework PJRT API version 0\.51\)\. Where nvidia-smi shows a GPU",
        ),
        (
            "Unable to initialize backend 'cuda': Unable to use CUDA because of the following issues with CUDA"
            " components:\nOutdated cuDNN installation found.\nVersion JAX was built against: 8907\nMinimum supported:"
            " 9100\nInstalled version: 8907\nThe local installation version must be no lower than 9100.." + CLOSE,
            r"Outdated cuDNN installation found\. Version .* than 9100\. Where nvidia-smi shows a GPU",
        ),
        (
            "Unable to initialize backend 'cuda': INTERNAL: no supported devices found for platform CUDA (you may need"
            " to uninstall the failing plugin package, or set JAX_PLATFORMS=cpu to skip this backend.)",
            r"found for platform CUDA\. Another process may have the GPU, or all of its memory",
        ),
        (
            "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so: libtpu.so: cannot open shared"
            " object file: No such file or directory" + CLOSE,
            r"or directory\. Unset it to take what there is; .* a TPU pip install -e '\.\[tpu\]'",
        ),
    ],
    ids=lambda text: text.partition("backend ")[2][:40],
)
def test_what_keeps_a_device_away_is_one_line_with_its_way_out(monkeypatch, told, way_out):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(jax, "devices", lambda: (_ for _ in ()).throw(RuntimeError(told)))
    with pytest.raises(ConfigError, match=way_out) as caught:
        find_devices()
    assert "\n" not in str(caught.value) and "ALLOW_MULTIPLE" not in str(caught.value)


def test_what_is_to_be_installed_is_said_to_who_asks_for_it(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: (_ for _ in ()).throw(RuntimeError("Unable to initialize backend")))
    for platforms, is_said in {"cuda,cpu": True, "TPU": True, "nonsense": False, "cpu": False}.items():
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        with pytest.raises(ConfigError, match=r"Unset it to take what there is") as caught:
            find_devices()
        assert ("pip install" in str(caught.value)) is is_said


@pytest.mark.parametrize("script", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_ENABLE_X64", "maybe", "JAX_ENABLE_X64=maybe cannot be read by JAX: invalid truth value 'maybe' for"),
        ("JAX_NUM_CPU_DEVICES", "x", 'JAX_NUM_CPU_DEVICES=x cannot be read by JAX: Invalid value "x" for JAX flag'),
    ],
)
def test_a_variable_that_jax_cannot_read_is_named_and_no_file_is_blamed(finished_run, script, name, value, message):
    of_what = {"train": ["--config", "quickstart"], "evaluate": ["--workdir", str(finished_run.workdir)]}[script]
    command = [sys.executable, f"scripts/{script}.py", *of_what]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {name: value}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: The environment variable {message}") and done.stderr.count("\n") == 1


def test_a_value_that_a_config_file_gives_jax_is_blamed_on_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    (tmp_path / "own.py").write_text("import jax\njax.config.update('jax_num_cpu_devices', 'x')")
    with pytest.raises(ConfigError, match=r"own\.py, line 2: ValueError: new int config value"):
        load_config(tmp_path / "own.py")


def test_a_program_sets_logging_up_after_it_has_trained(tmp_path):
    code = (
        "import logging, sys; from jax_cifar.run.arrays import _orbax; _orbax()\n"
        "logging.basicConfig(filename=sys.argv[1], level=logging.INFO); logging.info('hello')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "own.log")], check=True)
    assert (tmp_path / "own.log").read_text() == "INFO:root:hello\n"


def test_devices_of_processes_that_have_not_joined_are_refused(monkeypatch):
    devices = [SimpleNamespace(process_index=i // 2) for i in range(4)]
    monkeypatch.setattr(mesh, "find_devices", lambda: devices)
    with pytest.raises(ConfigError, match=r"These 4 devices belong to 2 processes, which have not joined"):
        mesh.make_mesh(small_config())


def test_a_run_without_compilation_is_refused_before_its_folder_is_made(tmp_path):
    with jax.disable_jit(), pytest.raises(ConfigError, match=r"JAX_DISABLE_JIT = True .* one compiled program"):
        train(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def start(folder, python=(), options=(), **environment):
    """Exit code, standard output and error of a small run in a process of its own."""
    command = [
        sys.executable,
        *python,
        "scripts/train.py",
        "--config",
        "configs/quickstart.py",
        "--workdir",
        str(folder),
    ]
    command += [f"--{field}" for field in (*SMALL, *options)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    cache = {name: os.environ[name] for name in ("JAX_COMPILATION_CACHE_DIR",) if name in os.environ}
    done = subprocess.run(command, cwd=ROOT, env=kept | cache | environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "environment"),
    [
        (("-O",), {}),
        (("-W", "error"), {}),
        ((), {"PYTHONWARNINGS": "error"}),
        ((), {"JAX_ENABLE_X64": "1"}),
        ((), {"JAX_DEBUG_NANS": "1"}),
        ((), {"JAX_NUM_CPU_DEVICES": "2"}),
    ],
)
def test_a_run_works_whatever_is_set_around_it(tmp_path, python, environment):
    code, said, complaints = start(tmp_path / "run", python, **environment)
    assert (code, complaints) == (0, ""), complaints
    assert "test accuracy" in said and (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "error: JAX finds no devices with JAX_PLATFORMS=cuda: "),
        ({"JAX_PLATFORMS": "nonsense"}, "error: JAX finds no devices with JAX_PLATFORMS=nonsense: Unable to "),
        ({"JAX_NUM_CPU_DEVICES": "0"}, "error: JAX_NUM_CPU_DEVICES = 0 is not allowed: it must be at least 1; unset,"),
        ({"JAX_NUM_CPU_DEVICES": "3"}, "error: train.batch_size = 8 does not divide over 3 devices"),
        ({"JAX_NUM_CPU_DEVICES": "x"}, "error: The environment variable JAX_NUM_CPU_DEVICES=x cannot be read by JAX"),
        ({"JAX_DISABLE_JIT": "1"}, "error: JAX_DISABLE_JIT = True is not allowed: "),
    ],
)
def test_what_cannot_work_is_one_message_and_leaves_nothing(tmp_path, environment, message):
    code, _, complaints = start(tmp_path / "run", **environment)
    assert (code, message in complaints, complaints.count("\n")) == (2, True, 1), complaints
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_nan_that_the_environment_looks_for_is_a_run_that_diverged(tmp_path):
    options = ("optim.lr=1e15", "optim.name=sgd", "schedule.name=constant")
    code, _, complaints = start(tmp_path / "run", options=options, JAX_DEBUG_NANS="1")
    assert (code, complaints.count("Traceback")) == (3, 0), complaints
