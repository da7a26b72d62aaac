"""What a run folder says, who holds it, and what may be removed of it."""

import errno
import os

import pytest

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import try_lock
from ddpm_lightning.run_folder import (
    by_step,
    checkpoints_in,
    hold,
    is_going_on,
    refuse_pipes,
    release,
    remove_leftovers,
    remove_unbegun,
)


def test_steps_are_compared_by_number(tmp_path):
    for step in (9_999_999, 10_000_000, 2, 12_345_678):
        (tmp_path / f"step_{step:07d}.ckpt").touch()
    for other in ("step_x.ckpt", "step_.ckpt", "grid_3.ckpt"):
        (tmp_path / other).touch()
    (tmp_path / "last.ckpt").touch()
    steps = [int(path.stem[5:]) for path in by_step(tmp_path, "step", ".ckpt")]
    assert steps == [2, 9_999_999, 10_000_000, 12_345_678]
    assert [path.name for path in checkpoints_in(tmp_path)][::4] == ["step_12345678.ckpt", "last.ckpt"]


def test_what_a_killed_process_left_of_a_sample_is_removed(tmp_path):
    (tmp_path / "samples").mkdir()
    names = ["grid_0000004.png", "trajectory_0000004.gif", "reverse_process_0000004.html"]
    for name in [*names, ".mine.html", *(f".{name}.123" for name in names)]:
        (tmp_path / "samples" / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {*names, ".mine.html"}


def test_links_out_of_a_folder_are_refused_at_any_depth(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    (run / "wandb").mkdir()
    (run / "config.yaml").touch()
    other.mkdir()
    (run / "last").symlink_to("checkpoints")  # inside
    (run / "wandb" / "debug.log").symlink_to(other)  # W&B's own
    (run / "report" / "wandb").mkdir(parents=True)
    (run / "report" / "wandb" / "debug-core.log").symlink_to(other)  # of a sweep's report
    refuse_pipes(run, and_links_out=True)
    for place in (run / "metrics.csv", run / "checkpoints" / "x", run / "samples", run / "report" / "x.png"):
        place.symlink_to(other / "x")
        with pytest.raises(UserError, match=f"{place} is a link to {other / 'x'}, outside of"):
            refuse_pipes(run, and_links_out=True)
        place.unlink()


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "summary.json")
    for and_links_out in (False, True):
        with pytest.raises(UserError, match="summary.json is neither a file nor a folder: remove it"):
            refuse_pipes(tmp_path, and_links_out=and_links_out)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link|loop"):
        hold(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"


def test_only_what_a_refused_start_made_is_removed(tmp_path):
    made, there = tmp_path / "new" / "run", tmp_path / "old"
    there.mkdir()
    (there / "train.log").write_text("of a run that starts")
    for folder in (made, there):
        hold(folder)
        (folder / ".hydra").mkdir()
        remove_unbegun(folder, ".hydra", "train.log")
    assert not made.parent.exists()
    assert [path.name for path in there.iterdir()] == ["train.log"]
    hold(there)
    (there / "config.yaml").touch()
    remove_unbegun(there, ".hydra", "train.log")
    assert {path.name for path in there.iterdir()} == {"train.log", "config.yaml", ".lock"}
    release(there)


def test_a_lock_file_that_its_holder_removed_is_made_anew(tmp_path):
    hold(tmp_path)
    (tmp_path / ".lock").unlink()
    new = try_lock(tmp_path / ".lock")
    assert new is not None
    assert try_lock(tmp_path / ".lock") is None
    os.close(new)
    release(tmp_path)


def test_a_file_system_without_locks_is_accepted(tmp_path, monkeypatch):
    def refuse(descriptor, *, blocking):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ddpm_lightning.files.lock_descriptor", refuse)
    assert hold(tmp_path)
    assert not is_going_on(tmp_path)
    release(tmp_path)
    assert [*tmp_path.iterdir()] == []
