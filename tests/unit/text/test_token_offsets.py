from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rsgrpo.text.token_offsets import TokenizerError, TokenTable

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "<observe>The café shows 3 cards.</observe>\n<evidence>\n[1]: a red 4\n[2]: no relevant information\n</evidence>\n",
    "<think>The first</think><answer>insufficient to answer</answer>",
    "<evidence>[1]: 東京タワー <think>\n\nSo it is 7.</think>\n<answer>No</answer>",
]


@cache
def hf_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE in which `>` merges with a newline, a bracket and a following tag."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 8, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|image_pad|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@cache
def table() -> TokenTable:
    return TokenTable.from_tokenizer(hf_tokenizer())


def naive_decode(pieces: list[bytes]) -> tuple[str, list[int]]:
    """By definition: decode byte by byte, note at which byte each character begins, count."""
    data = b"".join(pieces)
    text = data.decode("utf-8", errors="replace")
    first_bytes = []
    position = 0
    for character in text:
        first_bytes.append(position)
        if character != "\ufffd" or data[position : position + 3] == b"\xef\xbf\xbd":
            position += len(character.encode())
            continue
        # an ill-formed piece: the longest run that is replaced by this one character alone
        length = next(
            n
            for n in (3, 2, 1)
            if data[position : position + n].decode(errors="replace") == "\ufffd" and position + n <= len(data)
        )
        position += length
    assert position == len(data)
    byte_start = 0
    starts = []
    for piece in pieces:
        starts.append(sum(first < byte_start for first in first_bytes))
        byte_start += len(piece)
    return text, starts


def test_tags_merge_with_their_neighbours_in_this_tokenizer() -> None:
    tokens = hf_tokenizer().convert_ids_to_tokens(hf_tokenizer().encode("<evidence>\n[1]: a</think><answer>"))
    assert ">Ċ" in tokens  # `>` and the newline
    assert "><" in tokens


def test_the_worked_example() -> None:
    decoder = TokenTable([b"<think", b">\n", b"x", b""])
    text, starts = decoder.decode([0, 1, 2, 3])
    assert text == "<think>\nx"
    assert starts.tolist() == [0, 6, 8, 9]
    assert starts.dtype == np.int32


def test_a_character_over_several_tokens_belongs_to_the_first() -> None:
    # "é" is C3 A9, "東" is E6 9D B1; the second half of a character carries the start of the next one
    decoder = TokenTable([b"a\xc3", b"\xa9b", b"\xe6", b"\x9d", b"\xb1", b"<", b""])
    text, starts = decoder.decode([0, 1, 2, 3, 4, 5, 6])
    assert text == "aéb東<"
    assert starts.tolist() == [0, 2, 3, 4, 4, 4, 5]


def test_special_tokens_add_nothing_and_other_added_ones_their_text() -> None:
    tokenizer = hf_tokenizer()
    ids = [
        tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<tool_call>", "<|im_end|>", "<|im_end|>")
    ]
    text, starts = table().decode(ids)
    assert text == "<tool_call>"
    assert starts.tolist() == [0, 0, 11, 11]


def test_no_tokens() -> None:
    text, starts = table().decode([])
    assert (text, starts.tolist()) == ("", [])
    assert starts.dtype == np.int32


def test_an_unknown_id_is_named() -> None:
    decoder = TokenTable([b"a", None, b"b"])
    for wrong in (-1, 1, 3):
        with pytest.raises(TokenizerError, match=f"token id {wrong} is not in the tokenizer, which has 2 tokens"):
            decoder.decode([0, wrong, 2])


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    tokenizer = SimpleNamespace(added_tokens_decoder={}, all_special_ids=[], get_vocab=lambda: {"▁the": 0})
    with pytest.raises(TokenizerError, match=r"'▁the' \(id 0\) holds '▁'"):
        TokenTable.from_tokenizer(tokenizer)


@given(st.text(max_size=60))
def test_text_survives_encoding_and_decoding(text: str) -> None:
    data = text.encode("utf-8", "ignore").decode()
    assert table().decode(hf_tokenizer().encode(data))[0] == hf_tokenizer().decode(
        hf_tokenizer().encode(data), skip_special_tokens=True
    )


@given(st.lists(st.integers(0, len(hf_tokenizer()) - 1), max_size=40))
def test_any_sampled_ids_decode_as_the_tokenizer_does(ids: list[int]) -> None:
    text, starts = table().decode(ids)
    assert text == hf_tokenizer().decode(ids, skip_special_tokens=True)
    assert len(starts) == len(ids)


BYTES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [b"<think>", b">\n", b"", b"\xc3", b"\xa9", b"\xe6\x9d", b"\xb1", b"\xf0\x9f", b"\x98\x80", b"\xef\xbf\xbd"]
    ),
    st.text(max_size=3).map(lambda text: text.encode("utf-8", "ignore")),
)


@given(st.lists(BYTES, max_size=25))
def test_offsets_equal_the_naive_decoder_for_any_bytes(pieces: list[bytes]) -> None:
    text, starts = TokenTable(pieces).decode(range(len(pieces)))
    expected_text, expected_starts = naive_decode(pieces)
    assert text == expected_text
    assert starts.tolist() == expected_starts


@given(st.lists(BYTES, min_size=1, max_size=25), st.data())
def test_tokens_and_characters_partition_alike(pieces: list[bytes], data: st.DataObject) -> None:
    # cut the text anywhere: tokens left of the cut are those whose first character is left of it
    text, starts = TokenTable(pieces).decode(range(len(pieces)))
    cut = data.draw(st.integers(0, len(text)))
    left = int(np.searchsorted(starts, cut))
    assert (starts[:left] < cut).all()
    assert (starts[left:] >= cut).all()
    assert (np.diff(starts) >= 0).all()
    assert starts.max(initial=0) <= len(text)
