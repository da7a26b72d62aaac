"""House English: phrases that read as translated must not come back, each with what to write instead."""

import re

import pytest

from tests.helpers.configs import ROOT

INSTEAD = {
    r"will not do\b": "must be ..., got ...",
    r"is no (number of|seed\b|finite number)": "must be ..., got ...",
    r"to the bit\b": "bit-identical",
    r"\b(go|goes|going|gone) on (from|with|where)\b": "resumes from",
    r"\bhow to go on\b": "next steps",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bwants `?pip\b": "requires",
    r"\bclosing words\b": "final message",
    r"\beach at once or not at all\b": "written atomically",
    r"\bis neither training nor sampling\b": "utilities",
    r"\bone that was left alone\b": "an uninterrupted run",
    r"\bis told the least\b": "minimizes the best validation value",
    r"\b(an|the|run's) averages? of (the|its) weights\b": "EMA weights",
    r"\berror of the predicted noise\b": "noise-prediction error",
    r"\bof Hugging Face's\b": "a Hugging Face dataset",
    r"\b(weights|images) (that )?are shared out\b": "sharded, or split",
    r"\bquote what holds blanks\b": "quote values with spaces",
    r"\boptimiser": "optimizer",
}
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.py",
        "README.md",
        "CONTRIBUTING.md",
        "docs/**/*.md",
        "conf/**/*.yaml",
        "ddpm_lightning/**/*.py",
        "benchmarks/*.py",
    )
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("phrase", INSTEAD)
def test_no_translated_phrase(phrase):
    text = re.compile(phrase.replace(" ", r"\s+(?:#\s+)?"), re.IGNORECASE)
    found = []
    for name in FILES:
        content = (ROOT / name).read_text()
        found += [
            f"{name}:{content.count(chr(10), 0, match.start()) + 1}: {match[0]!r}" for match in text.finditer(content)
        ]
    assert not found, f"write {INSTEAD[phrase]!r} instead at\n" + "\n".join(found)


ABBREVIATIONS = {
    "DDIM": "denoising diffusion implicit model",
    "EMA": "exponential moving average",
    "FID": "Fréchet (and kernel )?inception distance",
    "KID": "kernel inception distance",
    "ODE": "ordinary differential equation",
    "SDE": "stochastic differential equation",
    "SNR": "signal-to-noise ratio",
    "W&B": "Weights & Biases",
}
PAGES = [name for name in FILES if name.endswith(".md") and not name.startswith("docs/reference")]


@pytest.mark.parametrize("page", PAGES)
def test_abbreviations_are_spelled_out_once_on_each_page(page):
    code = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
    prose = " ".join(code.sub("", (ROOT / page).read_text()).split())
    for short, words in ABBREVIATIONS.items():
        if re.search(rf"(?<!\w){re.escape(short)}(?!\w)", prose):
            assert re.search(words, prose, re.IGNORECASE), f"spell out {short}"
