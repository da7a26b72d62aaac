"""What is printed of an evaluation, and of several side by side, in 80 columns."""

from pathlib import Path

from ddpm_lightning.evaluation.table import aligned, lines_of

FEATURES = "own classifier (1500 steps on this dataset, test accuracy 98.9%)"
OF = f"10,000 samples, 50,000 train images, features: {FEATURES}"
FLOOR = "10,000 held-out images in the samples' place"
NEAREST = (
    "how often a sample is closer to the 50,000 training images than a held-out image is: 0.5 for new images, 1 for "
    "copies (2,000 samples, 2,000 held out)"
)
BITS = "10,000 held-out images, learned variance, one sample of x_t per t"
SUMMARY = {
    "metrics": {
        "fid": {"value": 12.3456, "of": OF, "note": ""},
        "kid": {"value": 0.000123456, "spread": 0.0000123, "spread_of": "10 seeds", "of": OF, "note": "100 subsets"},
        "precision": {"value": 0.5, "of": OF, "note": "k = 3"},
        "recall": {"value": 0.25, "of": OF, "note": "k = 3"},
        "fid_of_held_out": {"value": 1.5, "of": FLOOR, "note": FLOOR},
        "closer_to_train_by_features": {"value": 0.5, "of": NEAREST},
        "bits_per_dim_total": {"value": 3.1, "spread": 0.012, "spread_of": "images", "of": BITS},
    },
    "protocol": {
        "weights": "ema",
        "checkpoint": "outputs/2026-11-27/12-00-00/checkpoints/last.ckpt",
        "sampler": {"_target_": "ddpm_lightning.samplers.DPMSolverPP"},
        "steps": 1000,
        "network_evaluations_per_image": 2000,
        "seeds": [0, 1, 2],
    },
    "timing": {"images_per_second_of_one_process": 1234.56},
}


def test_an_evaluation_fits_a_terminal():
    lines = [*lines_of(SUMMARY, Path("evaluations/ddim_10"))]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("closer to the 50,000") == 1
    assert "  kid                          0.0001235  ± 1.2e-05 (10 seeds)  lower is better\n" in text
    assert "  fid_of_held_out              1.5\n" in text
    assert "  kid: 100 subsets; precision, recall: k = 3\n" in text
    assert lines[-1] == "evaluations/ddim_10/evaluation.json"


def test_columns_that_do_not_fit_follow_below():
    head = ["sampler", *(f"column {i}" for i in range(9))]
    rows = [[name, *(f"{i}.25 ± 0.125" for i in range(9))] for name in ("DDIM", "DPMSolverPP " + "order=2 " * 9)]
    lines = [*aligned(head, rows)]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for i in range(9):
        assert text.count(f"column {i}") == 1
        assert text.count(f" {i}.25 ± 0.125") == 2
    assert text.count("DDIM") == text.count("sampler") == len(text.split("\n\n")) > 1
    assert text.count("order=2") == 9 * text.count("DDIM")


def test_a_table_that_fits_is_one():
    assert [*aligned(["sampler", "fid"], [["DDIM", "2.5*"], ["Heun", "12.5 "]])] == [
        "sampler    fid",
        "DDIM      2.5*",
        "Heun     12.5 ",
    ]
