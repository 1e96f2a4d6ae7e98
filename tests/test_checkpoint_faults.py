"""What is no damage: a checkpoint out of reach, one of a later version, what is none at all, a save that fails."""

import json
import os
import resource
import shutil

import numpy as np
import pytest
from checkpoint_states import assert_same, biggest_file, folders, make_state

from jax_cifar.errors import CheckpointError
from jax_cifar.files import sha256_of_json
from jax_cifar.run import arrays
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.manifest import FORMAT, MANIFEST
from jax_cifar.run.reading import read_variables


def test_a_missing_library_is_not_taken_for_damage(saved, warnings, monkeypatch):
    def missing(*_):
        raise ImportError("no orbax")

    monkeypatch.setattr("jax_cifar.run.arrays.read_arrays", missing)
    with pytest.raises(ImportError):
        saved.restore(make_state())
    assert folders(saved) == ["1", "2", "3"] and not warnings


def rewrite_manifest(folder, **changes):
    """Change a manifest as another version would have written it; None takes an entry away."""
    path = folder / MANIFEST
    body = {name: value for name, value in {**json.loads(path.read_text()), **changes}.items() if value is not None}
    body.pop("sha256")
    path.write_text(json.dumps({"sha256": sha256_of_json(body), **body}))


def a_link_to_itself(path):
    """A file whose opening fails, and not because it is missing; the permissions of root forbid nothing."""
    path.unlink()
    path.symlink_to(path)


def out_of_reach(folder):
    a_link_to_itself(biggest_file(folder / "state"))


def out_of_reach_in_format_2(folder):
    out_of_reach(folder)
    rewrite_manifest(folder, format=2, files=None)


def structure_out_of_reach_in_format_2(folder):
    a_link_to_itself(folder / "state" / "_METADATA")
    rewrite_manifest(folder, format=2, files=None)


def manifest_out_of_reach(folder):
    a_link_to_itself(folder / MANIFEST)


@pytest.mark.parametrize(
    "fault",
    [out_of_reach, out_of_reach_in_format_2, structure_out_of_reach_in_format_2, manifest_out_of_reach],
    ids=lambda fault: fault.__name__,
)
def test_what_cannot_be_read_now_is_an_error_that_says_so_and_nothing_is_renamed(saved, warnings, capfd, fault):
    fault(saved.directory / "3")
    for read in (lambda: saved.restore(make_state()), lambda: read_variables(saved.directory)):
        with pytest.raises(
            CheckpointError, match=r"run/3 cannot be read now: Too many levels|is a link, .*not followed"
        ):
            read()
    assert folders(saved) == ["1", "2", "3"] and not warnings
    assert capfd.readouterr() == ("", "")


def test_too_many_open_files_harm_no_checkpoint(saved, warnings, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = []
    for spare in (0, 1, 2, 3, 5, 8, 13, 21):
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 40, hard))
        try:
            with pytest.raises(OSError):  # noqa: PT011
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(spare):
                os.close(taken.pop())
            outcomes.append(saved.restore(make_state()).step)
        except CheckpointError as error:
            outcomes.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in taken:
                os.close(number)
        assert folders(saved) == ["1", "2", "3"]
    assert outcomes[-1] == 3, "a handful of them is enough"
    assert outcomes[0] != 3 and all("Too many open files" in outcome for outcome in outcomes if outcome != 3)
    assert not warnings and capfd.readouterr() == ("", "")


def test_files_that_are_as_written_are_not_damaged_whatever_the_library_says(saved, warnings, monkeypatch):
    def fail(*_):
        raise ValueError("DATA_LOSS: so it says")

    monkeypatch.setattr("jax_cifar.run.arrays.read_arrays", fail)
    with pytest.raises(CheckpointError, match="run/3 cannot be read now: DATA_LOSS: so it says"):
        saved.restore(make_state())
    assert folders(saved) == ["1", "2", "3"] and not warnings


@pytest.mark.parametrize("format_2", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_a_truncated_file_is_damage_in_every_format_and_named_where_files_are_listed(saved, warnings, format_2, empty):
    folder = saved.directory / "3"
    if format_2:
        rewrite_manifest(folder, format=2, files=None)
    file = biggest_file(folder / "state")
    os.truncate(file, 0 if empty else file.stat().st_size // 2)
    found = read_variables(saved.directory, warn=warnings.append)
    assert found is not None and found[0] == 2
    assert folders(saved) == ["1", "2", "3"], "only who trains renames"
    assert saved.restore(make_state()).step == 2
    assert folders(saved) == ["1", "2", "3.damaged"] and len(warnings) == 2
    assert format_2 or all(file.name in line for line in warnings)


def test_a_list_of_files_that_leads_to_a_device_is_not_followed(saved):
    rewrite_manifest(saved.directory / "3", files={"/dev/zero": [0, "0" * 64]})
    biggest_file(saved.directory / "3" / "state").unlink()
    assert saved.restore(make_state()).step == 2


def test_a_checkpoint_that_a_run_replaces_while_it_is_read_makes_way_for_the_newer_one(saved, monkeypatch):
    read_arrays = arrays.read_arrays

    def late(path, names):
        saved.save(4, make_state(4), {})
        saved.wait()
        shutil.rmtree(saved.directory / "3", ignore_errors=True)
        return read_arrays(path, names)

    monkeypatch.setattr("jax_cifar.run.arrays.read_arrays", late)
    found = read_variables(saved.directory, warn=pytest.fail)
    assert found is not None and found[0] == 4


def test_a_checkpoint_of_a_later_version_is_said_to_be_one(saved, warnings):
    rewrite_manifest(saved.directory / "3", format=FORMAT + 1, extra=["of another shape"], leaves=7)
    for read in (lambda: saved.restore(make_state()), lambda: read_variables(saved.directory)):
        with pytest.raises(CheckpointError, match="run/3 was made by a later version"):
            read()
    assert folders(saved) == ["1", "2", "3"] and not warnings


def an_empty_folder(path):
    path.mkdir()


def a_file(path):
    path.write_text("5")


def a_link_to_nowhere(path):
    path.symlink_to(path.parent / "gone")


def a_checkpoint_of_another_program(path):
    shutil.copytree(path.parent / "3" / "state", path)


def one_without_its_manifest(path):
    shutil.copytree(path.parent / "3", path)
    (path / MANIFEST).unlink()


STRAYS = [an_empty_folder, a_file, a_link_to_nowhere, a_checkpoint_of_another_program, one_without_its_manifest]


@pytest.mark.parametrize("stray", STRAYS, ids=lambda stray: stray.__name__)
def test_what_is_no_checkpoint_is_not_used_and_renamed_only_where_it_is_in_the_way(saved, warnings, stray):
    for name in ("5", "latest", "5.old"):
        stray(saved.directory / name)
    assert saved.latest_step() == 3
    found = read_variables(saved.directory, warn=warnings.append)
    assert found is not None and found[0] == 3
    assert saved.restore(make_state()).step == 3
    assert folders(saved) == ["1", "2", "3", "5", "5.old", "latest"]
    assert len(warnings) == 3 and all("\n" not in line for line in warnings)
    assert "latest" in warnings[1] and "5.old" in warnings[1] and str(saved.directory / "5") in warnings[2]
    saved.save(5, make_state(5), {})
    assert saved.restore(make_state()).step == 5
    assert folders(saved) == ["2", "3", "5", "5.damaged", "5.old", "latest"]


def test_nothing_but_strays_does_not_start_a_run_from_nothing(tmp_path, warnings):
    an_empty_folder(tmp_path / "5")
    with Checkpoints(tmp_path, 1, warnings.append) as checkpoints:
        for read in (lambda: checkpoints.restore(make_state()), lambda: read_variables(tmp_path)):
            with pytest.raises(CheckpointError, match="can be used"):
                read()
    assert folders(checkpoints) == ["5"]


@pytest.mark.parametrize("stray", [a_file, a_link_to_nowhere], ids=lambda stray: stray.__name__)
def test_a_folder_of_checkpoints_that_is_none_is_one_message(tmp_path, stray):
    stray(tmp_path / "checkpoints")
    expected = "cannot be read: Not a directory" if stray is a_file else "points to .*gone, which is not there"
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        for read in (lambda: checkpoints.restore(make_state()), lambda: read_variables(tmp_path / "checkpoints")):
            with pytest.raises(CheckpointError, match=expected):
                read()


def test_a_flipped_byte_anywhere_is_survived(saved, warnings):
    files = [path for path in (saved.directory / "3").rglob("*") if path.is_file()]
    random = np.random.default_rng(0)
    for file in files:
        original = file.read_bytes()
        if not original:
            continue
        for _ in range(2):
            data = bytearray(original)
            data[random.integers(len(data))] ^= 1 << random.integers(8)
            file.write_bytes(data)
            restored = saved.restore(make_state())
            assert_same(restored.state, make_state(restored.step))
            if (saved.directory / "3.damaged").exists():
                (saved.directory / "3.damaged").rename(saved.directory / "3")
        file.write_bytes(original)
    assert saved.restore(make_state()).step == 3 and warnings


@pytest.fixture
def full_disk():
    """No file may grow past 20 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("call", ["wait", "close", "restore"])
def test_a_failed_save_surfaces_and_harms_nothing(saved, full_disk, capfd, caplog, call):
    saved.save(4, make_state(4), {})
    with pytest.raises(CheckpointError, match=r"4 could not be saved.*File too large"):
        getattr(saved, call)(*((make_state(),) if call == "restore" else ()))
    full_disk()
    assert capfd.readouterr() == ("", "") and not caplog.records  # one error, not also the library's tracebacks
    # Threads of Orbax may still be writing into what was removed; the next save removes that too.
    assert [name for name in folders(saved) if not name.endswith(".partial")] == ["1", "2", "3"]
    assert saved.latest_step() == 3
    restored = saved.restore(make_state())
    assert restored.step == 3
    assert_same(restored.state, make_state(3))


def test_saves_that_fail_on_the_way_stop_nothing_and_are_told_once_and_at_the_end(saved, warnings, full_disk):
    saved.save_best(4, make_state(4), {})
    for step in (4, 5, 6):
        saved.save(step, make_state(step), {})
    saved._settle(0)
    assert saved.latest_step() == 3
    full_disk()
    saved.save(7, make_state(7), {})
    saved.close()
    assert folders(saved) == ["2", "3", "7", "best"], "the best is written as soon as there is space"
    assert_same(saved.restore(make_state(), "best").state, make_state(4))
    assert len(warnings) == 2 and all("File too large" in line for line in warnings)
    assert "4 could not be saved" in warnings[0] and "the next save tries again" in warnings[0]
    assert "on the way" in warnings[1]


def test_saving_works_again_after_a_failure(saved, full_disk):
    saved.save(4, make_state(4), {})
    with pytest.raises(CheckpointError):
        saved.wait()
    full_disk()
    saved.save(5, make_state(5), {})
    saved.wait()
    assert folders(saved) == ["2", "3", "5"]


def test_folder_that_cannot_be_made_surfaces(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be saved"), Checkpoints(tmp_path / "file", keep=1) as saves:
        saves.save(1, make_state(), {})


def test_an_error_on_its_way_is_not_hidden_by_a_failed_save(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path / "file", 1, warnings.append) as saves:
        saves.save(1, make_state(), {})
        raise ZeroDivisionError
    assert len(warnings) == 1 and "could not be saved" in warnings[0]
