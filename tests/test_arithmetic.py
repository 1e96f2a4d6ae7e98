"""What decides the bits of a run is recorded with its checkpoints, and compared where it is resumed."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from small_runs import loop, small_config

from jax_cifar.backend.precision import float64
from jax_cifar.errors import CheckpointError
from jax_cifar.run.arithmetic import SETTINGS, arithmetic, require_same_numbers


@pytest.fixture
def said():
    return []


def here(**changes):
    return {**arithmetic(jnp.dtype("float32"), 1, {"own.py": "1f" * 32}), **changes}


@pytest.mark.parametrize("name", [*SETTINGS, "dtype", "code of own.py"])
def test_a_setting_that_changes_every_number_is_refused_unless_it_is_allowed(said, name):
    with pytest.raises(CheckpointError, match=rf"{name} 'other' there, .* here.*--allow-different-numbers"):
        require_same_numbers(here(**{name: "other"}), here(), False, said.append)
    assert not said
    require_same_numbers(here(**{name: "other"}), here(), True, said.append)
    assert len(said) == 1 and f"{name} 'other' there" in said[0] and "will differ" in said[0]


@pytest.mark.parametrize("name", ["device", "devices", "jax", "jaxlib", "XLA_FLAGS"])
def test_what_changes_last_bits_only_is_told_in_a_line(said, name):
    require_same_numbers(here(**{name: "other"}), here(), False, said.append)
    assert len(said) == 1 and f"{name} 'other' there" in said[0]


def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu(said):
    gpu = here(backend="gpu", device="NVIDIA H100", dtype="bfloat16")
    require_same_numbers(gpu, here(), False, said.append)
    assert len(said) == 1 and "backend 'gpu' there, 'cpu' here" in said[0] and "bfloat16" in said[0]
    with pytest.raises(CheckpointError, match="prng"):
        require_same_numbers({**gpu, SETTINGS[0]: "rbg"}, here(), False, said.append)


def test_a_checkpoint_without_the_record_goes_on_in_silence(said):
    require_same_numbers({}, here(), False, said.append)
    require_same_numbers({"of_a_later_version": 1}, here(), False, said.append)
    assert not said


def test_every_setting_is_read_from_jax():
    before = here()
    assert all(before[name] is not None for name in SETTINGS if "precision" not in name)
    with float64(), jax.default_matmul_precision("float32"), jax.threefry_partitionable(False):
        assert [name for name, value in here().items() if value != before[name]] == [SETTINGS[1], *SETTINGS[3:]]
    with jax.default_prng_impl("rbg"):
        assert here()[SETTINGS[0]] == "rbg" != before[SETTINGS[0]]


def test_a_run_compares_what_its_checkpoint_recorded(finished_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished_run.workdir, tmp_path / "run")
    monkeypatch.setattr(loop, "arithmetic", lambda *_: here(jax_default_prng_impl="rbg"))
    with pytest.raises(CheckpointError, match="'threefry2x32' there, 'rbg' here"):
        loop.train(small_config(), tmp_path / "run")
    loop.train(small_config(), tmp_path / "run", allow_different_numbers=True)
    assert "numbers will differ" in " ".join(capsys.readouterr().out.split())
