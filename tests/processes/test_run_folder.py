"""Who holds a run folder."""

import os
import subprocess
import sys

import pytest

from ddpm_lightning.errors import UserError
from ddpm_lightning.run_folder import (
    hold,
    is_going_on,
    only_one_run,
    release,
)


def test_a_folder_is_held_by_one_process(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note").write_text("mine")
    code = f"""
import sys
from pathlib import Path
from ddpm_lightning.run_folder import hold
hold(Path({str(tmp_path / "run")!r}))
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert is_going_on(tmp_path / "run")
        with pytest.raises(UserError, match="is used by another run"):
            hold(tmp_path / "run")
        process.kill()
    assert hold(tmp_path / "run")
    assert not hold(tmp_path / "run")  # by this process already
    with only_one_run(tmp_path / "run"), pytest.raises(UserError, match="another run"), only_one_run(tmp_path / "run"):
        pass
    release(tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["note"]
