"""A folder with a run that a stranger wrote, and the judge of what was done with it."""

import shutil
from hashlib import sha256

import torch


class Yard:
    """A folder with a stranger's run in outputs/, and around it what must stay as it is."""

    def __init__(self, path, tiny_run, number):
        self.path = path / f"{number:03d}"
        self.run = self.path / "outputs" / "2026-01-01" / "10-00-00"
        shutil.copytree(tiny_run, self.run)
        moved(self.run, tiny_run)
        self.victim = self.path / "outputs" / "2025-01-01" / "victim"
        (self.victim / "checkpoints").mkdir(parents=True)
        (self.victim / "note").write_text("mine")
        (self.victim / "checkpoints" / "step_0000001.ckpt").write_bytes(b"mine")
        evil = self.path / "evil" / "experiment"
        evil.mkdir(parents=True)
        code = f"# @package _global_\ncallbacks:\n  x:\n    _target_: os.mkdir\n    path: {self.path / 'trace'}\n"
        for name in ("evil", "train", "default"):
            (evil / f"{name}.yaml").write_text(code)
        self.places = {"TRACE": self.path / "trace", "VICTIM": self.victim, "EVIL": self.path / "evil"}

    def around(self, *own):
        """The files and folders that are not the stranger's, with what they hold."""
        own = own or (self.run,)
        return {
            str(path): sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in sorted(self.path.rglob("*"))
            if not any(path == mine or mine in path.parents or path in mine.parents for mine in own)
        }


def moved(run, old):
    """The copy of a run with its own folder's name in its config."""
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(str(old), str(run)))


def edit(run, change):
    """Write the run's newest checkpoint anew, changed."""
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    for old in (run / "checkpoints").glob("*.ckpt"):
        old.unlink()
    torch.save(checkpoint, path)


def judge(results, yards, cases, own=lambda yard: (yard.run,)):
    """No effect, no crash, and a sentence for what is refused; returns how many were."""
    refused = 0
    for result, (yard, before), case in zip(results, yards, cases, strict=True):
        told = f"{case!r:.600}\n{result}"
        assert yard.around(*own(yard)) == before, told
        assert "Traceback" not in result["err"], told
        assert result["code"] in (0, 1), told
        if result["code"]:
            errors = [line for line in result["err"].splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, told
            assert len(result["err"].strip().splitlines()) <= 3, told
            refused += 1
    return refused
