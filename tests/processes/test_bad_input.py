"""What cannot be is refused in one sentence, before training or sampling begins, and leaves nothing behind."""

import pytest

from tests.helpers.configs import TINY
from tests.helpers.scripts import script


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("schedule=null", "a config group cannot be null: choose one of its files"),
        ("~optimizer", "optimizer"),
        ("schedule.num_steps=[", "schedule.num_steps=[ cannot be read: unbalanced bracket"),
        ("trainer.strategy=fast", "trainer: "),
        ("hydra.run.dir=FILE/run", "FILE/run: Not a directory: give another path"),
        ("run_dir=FILE/run", "FILE/run: Not a directory: give another path"),
        ("schedule.num_steps=many", "schedule.num_steps must be an integer, got 'many'"),
    ],
)
def test_the_command_line_says_it_in_one_line(args, says, tmp_path):
    (tmp_path / "FILE").write_text("of someone else")
    result = script("train.py", *args.split(), *TINY, cwd=tmp_path, timeout=30)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("FILE", "of someone else")]
