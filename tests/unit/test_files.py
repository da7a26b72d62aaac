"""Files are written whole or not at all."""

from contextlib import suppress

import pytest

from ddpm_lightning.files import atomic_folder, check_zip, replace_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with suppress(KeyError), replace_file(path) as file:
        file.write("half")
        raise KeyError
    assert path.read_text() == "old"
    (tmp_path / "link").symlink_to(path)
    with replace_file(tmp_path / "link") as file:
        file.write("new")
    assert (path.read_text(), (tmp_path / "link").read_text()) == ("old", "new")
    assert not (tmp_path / "link").is_symlink()
    with suppress(KeyError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "x").touch()
        raise KeyError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "link"]


def test_a_file_that_is_no_zip_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a zip file"):
        check_zip(tmp_path / "x")
    with pytest.raises(OSError, match="No such file"):
        check_zip(tmp_path / "y")
