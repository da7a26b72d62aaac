import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.schedules import LearnedSchedule
from ddpm_lightning.sheets import Layout
from tests.helpers.configs import config_of, train_config
from tests.helpers.viewer import data_of, pixels_in


def draw(run, out, *overrides):
    return runs.sample(
        config_of(
            f"ckpt_path={run}/checkpoints/last.ckpt",
            "sampler=ddim",
            "sampler.num_steps=4",
            "num_samples=6",
            f"out_dir={out}",
            *overrides,
            name="sample",
        )
    )


def images(folder):
    return np.load(folder / "samples.npz")["images"]


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_image_i_is_the_same_whatever_the_batch_size_and_the_number_of_images(tiny_run, tmp_path, sampler):
    options = [f"sampler={sampler}", "sampler.num_steps=4", "format=npz"]
    whole = images(draw(tiny_run, tmp_path / "whole", *options))
    parts = images(draw(tiny_run, tmp_path / "parts", *options, "batch_size=4"))
    more = images(draw(tiny_run, tmp_path / "more", *options, "num_samples=9", "batch_size=5"))
    assert (whole.shape, whole.dtype) == ((6, 8, 8, 1), np.uint8)
    # another batch size may round the last bit of a float the other way, and with it one of 256 levels
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.abs(whole.astype(int) - more[:6]).max() <= 1
    other = images(draw(tiny_run, tmp_path / "other", *options, "seed=1"))
    assert np.abs(whole.astype(int) - other).max() > 20


def test_formats(tiny_run, tmp_path):
    npz = images(draw(tiny_run, tmp_path / "npz", "format=npz"))
    png = draw(tiny_run, tmp_path / "png", "format=png")
    assert sorted(os.listdir(png)) == [f"{i:05d}.png" for i in range(6)]
    for i in range(6):
        assert np.array_equal(np.asarray(Image.open(png / f"{i:05d}.png")), npz[i, :, :, 0])
    with Image.open(draw(tiny_run, tmp_path / "grid") / "grid.png") as image:
        sheet, facts = np.asarray(image), image.text
    assert sheet.shape == (2 * 130 + 2, 3 * 130 + 2, 3)  # 8×8 pixels, 16 times as large
    for i in range(6):
        y, x = 2 + i // 3 * 130, 2 + i % 3 * 130
        assert (sheet[y : y + 128, x : x + 128, 0] == npz[i, :, :, 0].repeat(16, 0).repeat(16, 1)).all()
    layout = facts.pop("layout")
    assert Layout.read({"layout": layout}).tops == [2, 132]
    assert facts == {
        "checkpoint": f"{tiny_run}/checkpoints/last.ckpt",
        "weights": "ema",
        "sampler": "ddim",
        "steps": "4 of T = 1,000",
        "seed": "0",
        "schedule": "linear",
        "prediction": "epsilon",
    }
    with Image.open(png / "00004.png") as image:
        assert image.text == {**facts, "image": "4"}


def test_a_page_of_the_reverse_process_begins_with_the_noise_and_ends_with_the_samples(tiny_run, tmp_path):
    npz = images(draw(tiny_run, tmp_path / "npz", "format=npz"))
    out = draw(tiny_run, tmp_path / "html", "format=html", "batch_size=4")
    assert os.listdir(out) == ["reverse_process.html"]
    html = (out / "reverse_process.html").read_text()
    assert [frame[:2] for frame in data_of(html)["frames"]] == [[0, 1000], [1, 750], [2, 500], [3, 250], [4, 0]]
    pixels = pixels_in(html)
    assert pixels.shape == (6, 5, 3, 1, 8, 8)
    for shown in (pixels[:, -1, 0], pixels[:, -1, 1]):
        assert np.abs(shown[:, 0].numpy().astype(int) - npz[..., 0]).max() <= 1  # another batch size
    noise = torch.cat([SeededNoise(0, [i]).draw((1, 8, 8)) for i in range(6)])
    assert torch.equal(pixels[:, 0, 0], to_uint8(noise))
    for fact in (f"{tiny_run}/checkpoints/last.ckpt", "ema", "ddim", "linear", "4 of T = 1,000", "0", "epsilon"):
        assert f"<dd>{fact}</dd>" in html
    assert len(html) < 40_000


def test_a_page_that_cannot_be_is_refused_before_anything_is_sampled(tiny_run, tmp_path):
    with pytest.raises(
        UserError, match="num_samples must be an integer from 1 to 100, got 101: format=html shows every image"
    ):
        draw(tiny_run, tmp_path / "out", "format=html", "num_samples=101")
    assert not (tmp_path / "out").exists()


def test_images_are_edited(tiny_run, tmp_path):
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / "gray.png")
    out = draw(tiny_run, tmp_path / "out", "edit=inpaint", f"edit.input={tmp_path}/gray.png", "edit.box=[0,0,8,4]")
    assert sorted(os.listdir(out)) == [*(f"000_gray_00{i}.png" for i in range(4)), "edit.png"]
    with Image.open(out / "000_gray_000.png") as image:
        assert (np.asarray(image)[:, 4:] == 128).all()


def test_the_newest_run_is_found(tiny_run, monkeypatch, capsys):
    monkeypatch.chdir(tiny_run.parent.parent)
    out = runs.sample(config_of("num_samples=1", "sampler.num_steps=2", name="sample"))
    assert out.parent.samefile(tiny_run)
    assert out.name.startswith("samples_")
    assert capsys.readouterr().out.startswith("Sampling from the newest run: outputs/")


def test_a_learned_schedule_is_sampled_with_as_it_was_learned(tmp_path):
    words = "schedule=learned", "schedule.hidden=16", "loss=vdm", "prediction=v", "trainer.max_steps=3"
    runs.train(train_config(tmp_path / "run", *words))
    content = runs.load_checkpoint(tmp_path / "run")
    denoiser = runs.load_denoiser(tmp_path / "run", weights="raw")
    for name, value in denoiser.schedule.named_parameters():
        assert torch.equal(value, content["state_dict"][f"denoiser.schedule.{name}"])
    fresh = LearnedSchedule(denoiser.schedule.num_steps, hidden=16)
    assert not torch.equal(fresh.heights, denoiser.schedule.heights)
    assert len(list(draw(tmp_path / "run", tmp_path / "out").iterdir())) == 1
    del content["state_dict"]["denoiser.schedule.heights"]
    torch.save(content, tmp_path / "broken.ckpt")
    with pytest.raises(UserError, match=r"schedule.heights"):
        runs.load_denoiser(tmp_path / "broken.ckpt", weights="raw")


def test_no_run_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="train one with `ddpm-train`"):
        runs.sample(config_of(name="sample"))


def test_a_folder_of_runs_names_the_newest(tmp_path):
    for age, name in enumerate(("day/new", "day/old")):
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    for folder in (tmp_path, tmp_path / "day"):
        with pytest.raises(
            UserError, match=f"is a folder of 2 runs: give one of them, such as ckpt_path={tmp_path}/day/new"
        ):
            runs.load_denoiser(folder)


class Trap:
    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_hides_code_is_not_run(tmp_path):
    trap = Trap()
    trap.folder = tmp_path / "sprung"
    path = tmp_path / "trap.ckpt"
    torch.save({"config": trap, "state_dict": {}}, path)
    with pytest.raises(UserError, match="cannot be loaded"):
        runs.load_denoiser(path)
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(UserError, match="cannot be loaded"):
        runs.load_denoiser(path)
    assert not trap.folder.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "ddpm_lightning.runs.training.os.system",
        "ddpm_lightning.schedules.math.sqrt",
        "ddpm_lightning.runs.train",
        "ddpm_lightning.schedules.__builtins__",
    ],
)
def test_a_target_that_is_no_model_of_ours_is_refused(tiny_run, tmp_path, target):
    checkpoint = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["config"]["denoiser"]["model"] = {"_target_": target, "_args_": ["touch /tmp/never"]}
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=f"asks for {target}, .*refused"):
        runs.load_denoiser(tmp_path / "bad.ckpt")


def test_what_is_no_checkpoint_is_named(tiny_run, tmp_path):
    whole = (tiny_run / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a", "b")
    for path in tmp_path.glob("*.ckpt"):
        with pytest.raises(UserError, match=f"ckpt_path={path} cannot be loaded"):
            runs.load_denoiser(path)
    with pytest.raises(UserError, match="there is no such file"):
        runs.load_denoiser(tmp_path / "missing.ckpt")


@pytest.mark.parametrize(
    "hidden",
    [
        ({"_target_": "os.mkdir", "path": "SPRUNG"},),  # a tuple, which plain data may hold
        [{"_target_": "os.mkdir", "path": "SPRUNG"}],
        "${oc.create:{_target_: os.mkdir, path: SPRUNG}}",
        "${oc.env:HOME}",
    ],
)
def test_nothing_can_be_hidden_in_a_checkpoints_config(tiny_run, tmp_path, monkeypatch, hidden):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["config"]["denoiser"]["model"]["channel_multipliers"] = hidden
    torch.save(checkpoint, "bad.ckpt")
    with pytest.raises(UserError, match="refused"):
        runs.load_denoiser("bad.ckpt")
    assert not (tmp_path / "SPRUNG").exists()


def test_weights_of_another_network_are_refused_in_one_sentence(tiny_run, tmp_path):
    checkpoint = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["config"]["denoiser"]["model"]["base_channels"] = 16
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="do not match"):
        runs.load_denoiser(tmp_path / "other.ckpt")


def test_a_run_folder_stands_for_its_newest_checkpoint(tiny_run, tmp_path):
    out = draw(tiny_run, tmp_path / "out", f"ckpt_path={tiny_run}")
    assert (out / "grid.png").exists()
    assert (
        runs.sample(config_of(f"ckpt_path={tiny_run}", "num_samples=1", "sampler.num_steps=1", name="sample")).parent
        == tiny_run
    )
    with pytest.raises(UserError, match="last.ckpt cannot be loaded .there is no such file"):
        runs.load_denoiser(tmp_path)


def test_a_folder_with_samples_is_refused_or_cleared_by_a_word(tiny_run, tmp_path):
    """A folder with images of two draws would be measured as one."""
    out = draw(tiny_run, tmp_path / "out", "format=png")
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for options in (["format=npz"], ["format=grid"], ["format=png", "num_samples=3"]):
        with pytest.raises(UserError, match=r"out_dir=.* already holds samples, such as .*png: .*overwrite=true"):
            draw(tiny_run, out, *options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    draw(tiny_run, out, "format=png", "num_samples=3", "seed=1", "overwrite=true")
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "00002.png", "notes.txt"]
    assert (out / "00000.png").read_bytes() != before["00000.png"]
    draw(tiny_run, out, "overwrite=true")
    assert sorted(path.name for path in out.iterdir()) == ["grid.png", "notes.txt"]
    with pytest.raises(UserError, match="overwrite must be true or false, got 'perhaps'"):
        draw(tiny_run, out, "overwrite=perhaps")


@pytest.mark.parametrize("form", ["png", "npz", "grid", "html"])
def test_samples_are_written_whole_or_not_at_all(tiny_run, tmp_path, monkeypatch, form):
    out = draw(tiny_run, tmp_path / "out", f"format={form}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("ddpm_lightning.runs.out_dir.os.replace", full_disk)
    monkeypatch.setattr("ddpm_lightning.files.os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(tiny_run, tmp_path / "new", f"format={form}")
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr("ddpm_lightning.runs.sampling.np.savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(tiny_run, out, f"format={form}", "seed=1", "overwrite=true")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_more_images_at_once_than_the_memory_holds_are_refused(tiny_run, tmp_path):
    held = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    held["config"]["data"]["image_size"] = [8192, 8192]
    (tmp_path / "checkpoints").mkdir()
    torch.save(held, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(
        UserError, match=r"batch_size=256: 256 images of \[1, 8192, 8192\] take 64 GiB, but this machine has"
    ):
        draw(tmp_path, tmp_path / "out", "num_samples=256")


@pytest.mark.parametrize("kind", ["stride 0", "beyond its storage", "meta", "sparse"])
def test_a_tensor_that_declares_more_than_it_holds_is_refused(tiny_run, tmp_path, kind):
    """A copy of the first ended in a segmentation fault."""
    held = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held["optimizer_states"][0]["state"][0]["exp_avg"] = {
            "stride 0": lambda: torch.zeros(1).expand(10**6, 10**6),
            "beyond its storage": lambda: torch.zeros(4).as_strided((4,), (0,), 3),
            "meta": lambda: torch.empty(10**6, 10**6, device="meta"),
            "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (10**12,)),
        }[kind]()
    torch.save(held, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="cannot be loaded .it holds a tensor that is not dense or has fewer"):
        runs.load_checkpoint(tmp_path / "bad.ckpt")
