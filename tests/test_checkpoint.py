"""Checkpoints: what comes back is what was saved, bit for bit; whatever is damaged is noticed and set aside."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import assert_same, biggest_file, flip_one_byte, folders, make_state

from jax_cifar.backend.precision import float64
from jax_cifar.errors import CheckpointError
from jax_cifar.run.checkpoint import Checkpoints


def test_round_trip_is_exact(tmp_path):
    state, extra = make_state(7), {"seconds": 0.1, "best": {"step": 3, "accuracy": 1 / 3}, "note": None}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(state) is None and checkpoints.latest_step() is None
        checkpoints.save(7, state, extra)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), make_state(0))
        restored = checkpoints.restore(template)
    assert restored is not None and (restored.step, restored.extra) == (7, extra)
    assert_same(restored.state, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.state))


def test_round_trip_with_ema_and_statistics_and_float64(tmp_path):
    with float64():
        tree = {"mean": jnp.linspace(0, 1, 5, dtype=jnp.float64), "count": jnp.int64(2**40)}
        state = make_state(1, batch_stats=tree, ema={"params": tree, "batch_stats": {}})
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.save(1, state, {})
            restored = checkpoints.restore(state)
        assert restored is not None
        assert_same(restored.state, state)


def test_restored_arrays_lie_where_the_template_says(tmp_path):
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(make_state(1), sharding)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        restored = checkpoints.restore(state)
    assert restored is not None
    assert {leaf.sharding for leaf in jax.tree.leaves(restored.state)} == {sharding}


def test_save_takes_a_copy_before_the_next_step_reuses_the_memory(tmp_path):
    state = {"weights": jnp.arange(100_000.0)}
    expected = np.arange(100_000, dtype=np.float32)
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(3):
            state = update(state)
        restored = checkpoints.restore(state)
    assert restored is not None and np.array_equal(restored.state["weights"], expected)


def test_save_copies_numpy_leaves_and_extra_too(tmp_path):
    state, extra = {"weights": np.zeros(1000)}, {"best": [1]}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, extra)
        state["weights"] += 1
        extra["best"].append(2)
        restored = checkpoints.restore(state)
    assert restored is not None and not restored.state["weights"].any() and restored.extra == {"best": [1]}


def test_newest_are_kept_and_the_best_apart(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, make_state(step), {})
            if step in (2, 3):
                checkpoints.save_best(step, make_state(step), {"accuracy": step})
        checkpoints.wait()
        assert folders(checkpoints) == ["4", "5", "best"]
        assert [path.name for path in (tmp_path / "best").iterdir()] == ["3"]
        assert checkpoints.latest_step() == 5
        last, best = checkpoints.restore(make_state()), checkpoints.restore(make_state(), "best")
    assert last is not None and best is not None
    assert (last.step, best.step, best.extra) == (5, 3, {"accuracy": 3})
    assert_same(last.state, make_state(5))
    assert_same(best.state, make_state(3))


def test_a_manifest_is_on_the_disk_before_its_checkpoint_has_a_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(number):
        synced.append((os.readlink(f"/proc/self/fd/{number}"), (tmp_path / "1").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"weights": np.zeros(10)}, {})
    assert [(Path(path).name, named) for path, named in synced if path.startswith(str(tmp_path))] == [
        ("manifest.json", False)
    ]


def test_a_new_best_takes_the_place_of_one_from_further_on(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (30, 25):  # the run went back, past its last checkpoint, and took another way
            checkpoints.save_best(step, make_state(step), {})
        best = checkpoints.restore(make_state(), "best")
    assert best is not None and best.step == 25


def test_fewer_checkpoints_than_are_kept_all_stay(tmp_path):
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, make_state(step), {})
        checkpoints.wait()
        assert folders(checkpoints) == ["1", "2", "3", "4"]


def test_a_step_saved_already_is_left_alone(saved):
    saved.save(3, make_state(99), {})
    restored = saved.restore(make_state())
    assert_same(restored.state, make_state(3))


def truncate(folder):
    path = biggest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def empty_file(folder):
    os.truncate(biggest_file(folder), 0)


def delete_file(folder):
    biggest_file(folder).unlink()


def delete_arrays(folder):
    shutil.rmtree(folder / "state")


def empty_index(folder):
    (folder / "state" / "manifest.ocdbt").write_bytes(b"")


def broken_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-40])


def altered_extra(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["extra"]["seconds"] = 0.0
    path.write_text(json.dumps(manifest))


def another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("1"), folder)


DAMAGES = [
    *(flip_one_byte, truncate, empty_file, delete_file, delete_arrays, empty_index),
    *(broken_manifest, altered_extra, another_step),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_noticed_set_aside_and_walked_past(saved, warnings, capfd, damage):
    damage(saved.directory / "3")
    left = sorted(path.name for path in (saved.directory / "3").rglob("*"))
    restored = saved.restore(make_state())
    assert (restored.step, restored.extra) == (2, {"seconds": 2 / 3})
    assert_same(restored.state, make_state(2))
    assert folders(saved) == ["1", "2", "3.damaged"]
    assert sorted(path.name for path in (saved.directory / "3.damaged").rglob("*")) == left
    assert len(warnings) == 1 and str(saved.directory / "3") in warnings[0] and "3.damaged" in warnings[0]
    assert "\n" not in warnings[0] and len(warnings[0]) < 600
    assert capfd.readouterr() == ("", "")
    assert saved.latest_step() == 2


@pytest.mark.parametrize("name", ["4.partial", "4.0a1b.partial"])
def test_leftover_of_an_unfinished_save_is_not_a_checkpoint(saved, warnings, name):
    shutil.copytree(saved.directory / "3", saved.directory / name)
    assert saved.latest_step() == 3
    assert saved.restore(make_state()).step == 3
    assert name in folders(saved) and len(warnings) == 1 and name in warnings[0]


def test_next_save_clears_its_own_leftovers_and_replaces_a_stray_folder(saved, warnings):
    (saved.directory / "4").mkdir()
    (saved.directory / "4.partial").mkdir()
    saved.save(4, make_state(4), {})
    assert saved.restore(make_state()).step == 4
    assert folders(saved) == ["2", "3", "4", "4.damaged"] and len(warnings) == 1


def test_all_damaged_is_an_error_now_and_the_next_time(saved, warnings):
    for step in ("1", "2", "3"):
        flip_one_byte(saved.directory / step)
    for _ in range(2):  # a second run must not quietly start from nothing
        with pytest.raises(CheckpointError, match=str(saved.directory)):
            saved.restore(make_state())
    assert folders(saved) == ["1.damaged", "2.damaged", "3.damaged"] and len(warnings) == 3


def test_damage_twice_at_one_step_keeps_both(saved):
    for _ in range(2):
        flip_one_byte(saved.directory / "3")
        assert saved.restore(make_state()).step == 2
        saved.save(3, make_state(3), {})
        saved.wait()
    assert saved.restore(make_state()).step == 3
    assert folders(saved) == ["1", "2", "3", "3.damaged", "3.damaged1"]


def test_damaged_best_is_an_error_and_leaves_the_last_alone(saved, warnings):
    saved.save_best(2, make_state(2), {})
    saved.wait()
    flip_one_byte(saved.directory / "best" / "2")
    with pytest.raises(CheckpointError, match="best"):
        saved.restore(make_state(), "best")
    assert saved.restore(make_state()).step == 3 and len(warnings) == 1


def other_shape(state):
    state["params"]["conv1"]["kernel"] = jnp.zeros((3, 3, 32, 128))
    return "params/conv1/kernel: checkpoint (3, 3, 32, 64), this configuration (3, 3, 32, 128)"


def other_dtype(state):
    state["params"]["head"]["bias"] = jnp.zeros(3)
    return "params/head/bias: checkpoint bfloat16 (3,), this configuration float32 (3,)"


def one_more(state):
    state["batch_stats"] = {"norm1": {"mean": jnp.zeros(4)}}
    return "batch_stats/norm1/mean: checkpoint nothing, this configuration float32 (4,)"


def one_less(state):
    del state["params"]["head"]["bias"]
    return "params/head/bias: checkpoint bfloat16 (3,), this configuration nothing"


def many(state):
    state["params"] = {f"layer{i}": jnp.zeros(i) for i in range(1, 9)}
    return "7 more leaves differ"


@pytest.mark.parametrize("change", [other_shape, other_dtype, one_more, one_less, many])
def test_another_configuration_is_refused_in_five_lines(saved, warnings, change):
    template = make_state()
    expected = change(template)
    with pytest.raises(CheckpointError) as caught:
        saved.restore(template)
    message = str(caught.value)
    assert expected in message and str(saved.directory / "3") in message and "--workdir" in message
    assert len(message.splitlines()) <= 5
    assert folders(saved) == ["1", "2", "3"] and not warnings


def test_works_inside_a_running_event_loop_as_in_a_notebook(saved):
    async def cell():
        return saved.restore(make_state())

    assert asyncio.run(cell()).step == 3


def test_relative_directory_and_default_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run", keep=2) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()
        (tmp_path / "run" / "2").mkdir()
        monkeypatch.chdir("/")
        restored = checkpoints.restore(make_state())
    assert restored is not None and restored.step == 1
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'run' / '2'} is no checkpoint")


SAVING_FOR_EVER = """
import sys, numpy as np
from jax_cifar.run.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range(int(sys.argv[2]), 10**9):
    checkpoints.save(step, {f"layer{i}": np.full((200, 200), step, np.float32) for i in range(8)}, {"step": step})
    checkpoints.wait()
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, warnings):
    template = {f"layer{i}": np.zeros((200, 200), np.float32) for i in range(8)}
    delays, step = random.Random(0), 0
    with Checkpoints(tmp_path, keep=2, warn=warnings.append) as checkpoints:
        for _ in range(4):
            command = [sys.executable, "-c", SAVING_FOR_EVER, str(tmp_path), str(step + 1)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                seen = [child.stdout.readline()]
                time.sleep(delays.uniform(0, 0.3))
                child.send_signal(signal.SIGKILL)
                seen += child.stdout.readlines()
            committed = int([line for line in seen if line.endswith("\n")][-1])
            restored = checkpoints.restore(template)
            assert restored is not None and restored.step in (committed, committed + 1)
            assert restored.extra == {"step": restored.step}
            assert all((leaf == restored.step).all() for leaf in restored.state.values())
            step = restored.step
    assert all("unfinished save" in line for line in warnings), "a kill must not damage a finished checkpoint"
