"""Files are written whole or not at all."""

import zipfile
from contextlib import suppress

import pytest
import torch

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
    with pytest.raises(ValueError, match="it is damaged, or not a file of PyTorch or NumPy"):
        check_zip(tmp_path / "x")
    with pytest.raises(OSError, match="No such file"):
        check_zip(tmp_path / "y")


def test_a_member_that_is_marked_as_a_folder_is_found(tmp_path):
    """PyTorch reads nothing of it, and returns what was in memory; its checksum is right."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(64.0)}, path)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02", start)
    content[first + 38] ^= 0x10  # of the external attributes
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="a member is marked as a folder"):
        check_zip(path)
