"""Decode sampled ids exactly, and say where in the text each token begins.

Tags are looked for in the decoded text and mapped back to tokens through these offsets. Encoding a tag
and searching for its ids would miss most tags: byte-pair encoding merges ``>`` with what follows.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rsgrpo.errors import RsgrpoError
from rsgrpo.types import IntArray


class TokenizerError(RsgrpoError, ValueError):
    """A tokenizer that is no byte-level BPE, or an id that it does not have."""


class ByteLevelTokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The added tokens by id, each with ``content`` and ``special``."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The ids that decoding leaves out."""

    def get_vocab(self) -> Mapping[str, int]:
        """The ids of all tokens."""


def _byte_of_character() -> dict[str, int]:
    """The printable stand-in of each byte in a byte-level vocabulary (GPT-2's table), inverted."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return table


class TokenTable:
    """The exact bytes of every id, ready for decoding.

    Example:
        For ids whose bytes are ``b"<think"``, ``b">\\n"``, ``b"x"`` and an end-of-sequence token,
        ``decode`` gives ``("<think>\\nx", [0, 6, 8, 9])``.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        """Take the bytes of ids 0, 1, …; None marks an id without a token."""
        # An object array gathers 1,536 tokens in a third of the time of a loop over a tuple.
        self._bytes = np.empty(len(token_bytes), dtype=object)
        self._bytes[:] = [token or b"" for token in token_bytes]
        self._lengths = np.array([len(token or b"") for token in token_bytes], dtype=np.int32)
        self._is_known = np.array([token is not None for token in token_bytes], dtype=np.bool_)

    @classmethod
    def from_tokenizer(cls, tokenizer: ByteLevelTokenizer) -> TokenTable:
        """Read the table out of a Hugging Face tokenizer with a byte-level BPE (such as Qwen2's).

        Args:
            tokenizer: the tokenizer; its special tokens contribute nothing, other added tokens their literal text.

        Returns:
            The table, ready for decoding.

        Raises:
            TokenizerError: the vocabulary is not byte-level.
        """
        byte_of_character = _byte_of_character()
        vocabulary = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        special_ids = set(tokenizer.all_special_ids)
        size = max([*vocabulary.values(), *added], default=-1) + 1
        token_bytes: list[bytes | None] = [None] * size
        for token, token_id in vocabulary.items():
            if token_id in added:
                continue
            try:
                token_bytes[token_id] = bytes([byte_of_character[character] for character in token])
            except KeyError as error:
                raise TokenizerError(
                    f"token {token!r} (id {token_id}) holds {error.args[0]!r}, which stands for no byte: the tokenizer "
                    "is not a byte-level BPE; use the tokenizer that the model came with"
                ) from error
        for token_id, added_token in added.items():
            is_special = added_token.special or token_id in special_ids
            token_bytes[token_id] = b"" if is_special else str(added_token.content).encode()
        return cls(token_bytes)

    def decode(self, token_ids: Sequence[int] | IntArray) -> tuple[str, IntArray]:
        """Decode a response; see ``Rollout.text`` and ``Rollout.token_char_starts``.

        Bytes that are no UTF-8 become U+FFFD, one for each maximal ill-formed piece, as in
        ``bytes.decode(errors="replace")``.

        Args:
            token_ids: [R], the ids of the tokens.

        Returns:
            The text, and [R] int32: the offset of the first character that begins in the token or, where none does, of
            the next one; never decreasing, at most ``len(text)``.

        Raises:
            TokenizerError: the tokenizer has no token of an id.
        """
        ids = np.asarray(token_ids, dtype=np.intp)
        if not len(ids):
            return "", np.zeros(0, dtype=np.int32)
        self._check(ids)
        data = b"".join(self._bytes.take(ids).tolist())
        byte_starts = np.zeros(len(ids), dtype=np.int32)
        np.cumsum(self._lengths.take(ids[:-1]), out=byte_starts[1:])
        if data.isascii():
            return data.decode("ascii"), byte_starts
        text = data.decode("utf-8", errors="replace")
        is_first_byte = _first_bytes_of_invalid(data) if "\ufffd" in text else _first_bytes(data)
        num_begun = np.zeros(len(data) + 1, dtype=np.int32)
        np.cumsum(is_first_byte, out=num_begun[1:])
        return text, num_begun[byte_starts]

    def _check(self, ids: NDArray[np.intp]) -> None:
        size = len(self._is_known)
        in_range = ids.min() >= 0 and ids.max() < size
        if in_range and self._is_known.take(ids).all():
            return
        wrong = next(index for index in ids.tolist() if not 0 <= index < size or not self._is_known[index])
        raise TokenizerError(
            f"token id {wrong} is not in the tokenizer, which has {int(self._is_known.sum())} tokens; ban the ids "
            "that pad the model's embedding in sampling, or give the model its own tokenizer"
        )


def _first_bytes(data: bytes) -> NDArray[np.bool_]:
    """Mark the bytes that begin a character of UTF-8: all but the continuation bytes 10xxxxxx."""
    marks: NDArray[np.bool_] = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    return marks


def _first_bytes_of_invalid(data: bytes) -> NDArray[np.bool_]:
    """Mark the bytes that begin a decoded character, where some bytes are no UTF-8.

    Slow but exact: decode strictly up to each error, which Python reports with the very piece that
    one U+FFFD replaces.
    """
    is_first_byte = _first_bytes(data)
    position = 0
    view = memoryview(data)
    while position < len(data):
        try:
            codecs.utf_8_decode(view[position:], "strict", True)
        except UnicodeDecodeError as error:
            # The piece's other bytes are continuation bytes, unmarked already.
            is_first_byte[position + error.start] = True
            position += error.end
        else:
            break
    return is_first_byte
