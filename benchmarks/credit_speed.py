"""How long it takes to find tags, map scopes to tokens and give credit: 256 responses of 1,536 tokens.

The shape of one EVisRAG step: 32 groups of 8 siblings, five images each, the six scopes of the recipe.
Prints one JSON line with medians in milliseconds. ``tag_search`` is the comparison: the public approach in
our own words, one search of the encoded tag over the token ids (vectorised here), which besides misses
most tags because ``>`` merges with what follows (``tags_found_frac``).

    python benchmarks/credit_speed.py
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rewards.plugins import load_rewards
from rewards.scopes import ScopeRequest, locate_scopes
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import CreditConfig, RewardConfig, ScopeConfig
from rsgrpo.text.sections import parse_response
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import ChatPrompt, Group, ImageRef, IntArray, Rollout, RolloutGroup, Sample, ScoredGroup

NUM_GROUPS, NUM_SIBLINGS, NUM_TOKENS, NUM_IMAGES = 32, 8, 1536, 5
# The pre-tokenisation rule of Qwen2: it is what lets `>` merge with a following newline.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_SEQUENCE = "<|im_end|>"
WORDS = (
    "the bar chart shows revenue of company sales in third quarter page table lists total 16% users from 2019 to "
    "price units about more than fourth row column value legend axis title report year growth margin net 3.5 million"
)
SEARCHED = ("<evidence>", "<think>", "<answer>")
SCOPES = {
    "accuracy": (ScopeConfig(start="<think>", stop="end"), 3.0),
    "evidence": (ScopeConfig(start="begin", stop="<think>"), 3.0),
    "format": (ScopeConfig(start="begin", stop="end"), 1.0),
    "overlong": (ScopeConfig(start="begin", stop="end"), 1.0),
    "observe_citation": (ScopeConfig(start="begin", stop="<evidence>"), 1.0),
    "think_copy": (ScopeConfig(start="<think>", stop="<answer>"), 1.0),
}
FUNCTIONS = {
    "accuracy": "rewards.functions.accuracy:accuracy",
    "evidence": "rewards.functions.evidence:evidence",
    "format": "rewards.functions.format:format",
    "overlong": "rewards.functions.length:overlong",
    "observe_citation": "rewards.functions.copying:observe_citation",
    "think_copy": "rewards.functions.copying:think_copy",
}


class ServedTokenizer:
    """The part of a Hugging Face tokenizer that ``TokenTable`` reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.added_tokens_decoder = tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [index for index, token in self.added_tokens_decoder.items() if token.special]

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return vocabulary


def sentence(draw: random.Random, num_words: int) -> str:
    return " ".join(draw.choices(WORDS.split(), k=num_words))


def response_text(draw: random.Random, num_words: int) -> str:
    lines = [
        f"[{image}]: {sentence(draw, 16) if draw.random() < 0.5 else 'no relevant information'}"
        for image in range(1, NUM_IMAGES + 1)
    ]
    paragraphs = [f"{sentence(draw, 24).capitalize()}." for _ in range(num_words // 24 + 1)]
    half = len(paragraphs) // 2
    return (
        f"<observe>\n{' '.join(paragraphs[:half])}\n</observe>\n<evidence>\n{chr(10).join(lines)}\n</evidence>\n"
        f"<think>The {' '.join(paragraphs[half:])}</think>\n<answer>{sentence(draw, 2)}</answer>"
    )


def build_tokenizer(draw: random.Random) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([response_text(draw, 200) for _ in range(64)], trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_SEQUENCE, special=True)])
    return tokenizer


def sampled_ids(tokenizer: Tokenizer, draw: random.Random) -> IntArray:
    """One response of exactly ``NUM_TOKENS`` tokens, end of sequence included."""
    num_words = NUM_TOKENS
    while True:
        ids = tokenizer.encode(response_text(draw, num_words)).ids
        if len(ids) < NUM_TOKENS:
            break
        num_words -= 24
    filler = tokenizer.encode(" the").ids
    think = len(ids) - 40  # inside the think section
    ids = ids[:think] + filler * ((NUM_TOKENS - 1 - len(ids)) // len(filler)) + ids[think:]
    end_id = tokenizer.token_to_id(END_OF_SEQUENCE)
    assert end_id is not None
    ids += [end_id] * (NUM_TOKENS - len(ids))
    return np.array(ids, dtype=np.int32)


def build_groups(table: TokenTable, responses: list[IntArray]) -> list[RolloutGroup]:
    groups = []
    for first in range(0, len(responses), NUM_SIBLINGS):
        siblings = responses[first : first + NUM_SIBLINGS]
        decoded = [table.decode(ids) for ids in siblings]
        sample_id = f"q{first // NUM_SIBLINGS}"
        groups.append(
            Group(
                sample=Sample(
                    sample_id=sample_id,
                    images=tuple(ImageRef(path=f"{image}.png") for image in range(NUM_IMAGES)),
                    gold_response=decoded[0][0],
                ),
                prompt=ChatPrompt(sample_id=sample_id, text=""),
                prompt_token_ids=np.zeros(0, dtype=np.int32),
                rollouts=tuple(
                    Rollout(
                        sample_id=sample_id,
                        response_index=index,
                        token_ids=ids,
                        logprobs=np.zeros(len(ids), dtype=np.float32),
                        text=text,
                        token_char_starts=starts,
                        finish_reason="stop",
                        policy_version=0,
                    )
                    for index, (ids, (text, starts)) in enumerate(zip(siblings, decoded, strict=True))
                ),
            )
        )
    return groups


def build_scorer() -> Scorer:
    kwargs = {"overlong": {"max_response_tokens": 1536, "buffer_tokens": 512, "min_response_tokens": 200}}
    configs = {
        name: RewardConfig(function=FUNCTIONS[name], scope=scope, weight=weight, kwargs=kwargs.get(name, {}))
        for name, (scope, weight) in SCOPES.items()
    }
    return Scorer(load_rewards(configs, Path.cwd()))


def search_tags(responses: list[IntArray], tags: list[IntArray]) -> float:
    """The public approach, vectorised: look for each encoded tag in the ids; share of tags found."""
    num_found = 0
    for ids in responses:
        for tag in tags:
            windows = np.lib.stride_tricks.sliding_window_view(ids, len(tag))
            num_found += bool((windows == tag).all(axis=1).any())
    return num_found / (len(responses) * len(tags))


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    draw = random.Random(0)
    tokenizer = build_tokenizer(draw)
    table = TokenTable.from_tokenizer(ServedTokenizer(tokenizer))
    responses = [sampled_ids(tokenizer, draw) for _ in range(NUM_GROUPS * NUM_SIBLINGS)]
    groups = build_groups(table, responses)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    parsed = [parse_response(rollout.text) for rollout in rollouts]
    assert all(response.is_well_formed for response in parsed), "the responses of the benchmark must be well formed"
    requests = [ScopeRequest(scope=scope) for scope, _ in SCOPES.values()]
    weights = {name: weight for name, (_, weight) in SCOPES.items()}
    scored: list[ScoredGroup] = build_scorer().score(groups)
    tags = [np.array(tokenizer.encode(tag).ids, dtype=np.int32) for tag in SEARCHED]

    def map_scopes() -> None:
        for rollout, response in zip(rollouts, parsed, strict=True):
            locate_scopes(requests, response, rollout.token_char_starts, NUM_IMAGES)

    scorer = build_scorer()
    times = {
        "decode_ms": milliseconds(lambda: [table.decode(ids) for ids in responses], repeats),
        "parse_ms": milliseconds(lambda: [parse_response(rollout.text) for rollout in rollouts], repeats),
        "scopes_ms": milliseconds(map_scopes, repeats),
        "credit_ms": milliseconds(lambda: credit_groups(scored, weights, CreditConfig()), repeats),
        "score_ms": milliseconds(lambda: scorer.score(groups), repeats),
        "tag_search_ms": milliseconds(lambda: search_tags(responses, tags), repeats),
    }
    parts = ("decode_ms", "parse_ms", "scopes_ms", "credit_ms")
    report = {
        "responses": len(responses),
        "tokens_each": NUM_TOKENS,
        **times,
        "sum_ms": round(sum(times[part] for part in parts), 3),
        "target_ms": 30.0,
        "tags_found_frac": {
            "ours": sum(response.tag_start(tag) >= 0 for response in parsed for tag in SEARCHED)
            / (len(parsed) * len(SEARCHED)),
            "tag_search": round(search_tags(responses, tags), 3),
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
