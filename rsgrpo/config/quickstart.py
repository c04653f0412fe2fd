"""``quickstart``: the small task and the small model that the quickstart makes."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, Literal, at_least, between, check_choices

_MAX_QUICKSTART_SAMPLES = 1_000_000
_MAX_QUICKSTART_PIXELS = 2800
_MAX_QUICKSTART_HIDDEN = 8192
_MAX_QUICKSTART_LAYERS = 128
_MIN_VOCABULARY = 256 + 14  # every byte, and Qwen2.5's special tokens
_MAX_VOCABULARY = 200_000
MIN_TICKET_PIXELS = 56
"""The smallest width and height of a ticket, in pixels."""
MIN_TEST_PAGES = 5
"""The fewest tickets of a test: a question shows up to four beside the one asked for."""
MAX_TEST_PAGES = 1500
"""The most tickets of a test, of 2,016 pairs of marks; the others are trained on."""
_SCANS_PER_DIGIT = 174  # scikit-learn's digits: 174 scans of the 8, more of the others


@dataclass(kw_only=True, slots=True)
class QuickstartConfig:
    """The handwriting task that the quickstart writes, and the small model that it builds."""

    task: Literal["cards", "tickets", "ledger"] = "cards"
    """``cards``: coloured pages, whose numbers are read, looked for and added. ``tickets``: pages that two coloured
    marks name, which a retriever learns to find among many, and whose number is read. ``ledger``: six to eight pages,
    of which one tells where the amount asked for stands and another the amount; long responses."""
    family: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"] = "qwen2_5_vl"
    """The family of the small model; docs/families.md lists them."""
    num_sft_samples: int = 4096
    """Samples with gold responses to write for supervised training."""
    num_rl_samples: int = 4096
    """Samples to write for reinforcement learning."""
    num_test_samples: int = 512
    """Held-out samples to write; no handwriting of theirs occurs in training."""
    num_retriever_samples: int = 4096
    """Pairs of a question and its page to write for training a retriever (``tickets`` only)."""
    num_test_pages: int = 500
    """Pages in which the test searches (``tickets`` only), one question each; neither their pairs of marks nor their
    handwriting occur in training. The held-out samples show these pages."""
    sft_scans_per_digit: int = 10
    """Handwritten scans of each digit that supervised training sees, out of 174 or more. Few, so that it
    learns the questions soon and leaves reading other hands to reinforcement learning."""
    rl_scans_per_digit: int = 120
    """Scans of each digit for reinforcement learning."""
    test_scans_per_digit: int = 40
    """Scans of each digit for the test, and all that are left over."""
    unanswerable_frac: float = 0.2
    """Share of questions whose pages do not hold the answer."""
    image_pixels: int = 28
    """Width and height of a page; a multiple of 28, for ``tickets`` at least 56."""
    text_hidden: int = 128
    """Width of the language model."""
    text_layers: int = 3
    """Number of layers of the language model."""
    text_heads: int = 4
    """Number of attention heads of the language model."""
    vision_hidden: int = 96
    """Width of the vision tower."""
    vision_layers: int = 1
    """Number of layers of the vision tower."""
    vision_heads: int = 4
    """Number of attention heads of the vision tower."""
    vocabulary_tokens: int = 768
    """Size of the byte-level BPE vocabulary, special tokens included."""

    def __post_init__(self) -> None:
        check_choices(self, "quickstart.")
        for name in ("num_sft_samples", "num_rl_samples", "num_test_samples", "num_retriever_samples"):
            between(f"quickstart.{name}", getattr(self, name), 1, _MAX_QUICKSTART_SAMPLES)
        for name in ("sft_scans_per_digit", "rl_scans_per_digit", "test_scans_per_digit"):
            at_least(f"quickstart.{name}", getattr(self, name), 1)
        if self.sft_scans_per_digit + self.rl_scans_per_digit + self.test_scans_per_digit > _SCANS_PER_DIGIT:
            raise ConfigError(
                f"quickstart.sft_scans_per_digit={self.sft_scans_per_digit}, rl_scans_per_digit="
                f"{self.rl_scans_per_digit} and test_scans_per_digit={self.test_scans_per_digit} are more than the "
                f"{_SCANS_PER_DIGIT} scans that there are of the rarest digit; lower one of them"
            )
        if not 0.0 <= self.unanswerable_frac < 1.0:
            raise ConfigError(f"quickstart.unanswerable_frac={self.unanswerable_frac} must lie in [0, 1)")
        if self.image_pixels % 28 or self.image_pixels < 28:
            raise ConfigError(f"quickstart.image_pixels={self.image_pixels} must be a positive multiple of 28")
        between("quickstart.image_pixels", self.image_pixels, 28, _MAX_QUICKSTART_PIXELS)
        if self.task == "tickets" and self.image_pixels < MIN_TICKET_PIXELS:
            raise ConfigError(
                f"quickstart.image_pixels={self.image_pixels} is too small for quickstart.task=tickets, whose marks "
                f"and digit need {MIN_TICKET_PIXELS}; raise it to a multiple of 28 from there"
            )
        between("quickstart.num_test_pages", self.num_test_pages, MIN_TEST_PAGES, MAX_TEST_PAGES)
        between("quickstart.vocabulary_tokens", self.vocabulary_tokens, _MIN_VOCABULARY, _MAX_VOCABULARY)
        for part in ("text", "vision"):
            hidden, layers, heads = (getattr(self, f"{part}_{name}") for name in ("hidden", "layers", "heads"))
            between(f"quickstart.{part}_hidden", hidden, 8, _MAX_QUICKSTART_HIDDEN)
            between(f"quickstart.{part}_layers", layers, 1, _MAX_QUICKSTART_LAYERS)
            between(f"quickstart.{part}_heads", heads, 1, hidden)
            if hidden % heads or hidden // heads % 8:
                raise ConfigError(
                    f"quickstart.{part}_hidden={hidden} must be quickstart.{part}_heads={heads} times a multiple of 8, "
                    "the width of a head"
                )
        if self.text_heads > 1 and self.text_heads % 2:
            raise ConfigError(
                f"quickstart.text_heads={self.text_heads} must be even: two heads share a key and a value"
            )
