"""The records that cross package borders.

Every record is frozen, keyword-only and slotted: a stage reads one and returns a new one. Arrays are
numpy (they travel through Ray without a copy) and follow two conventions everywhere:

* entry ``t`` of an array over a response describes the response's token ``t``, the end-of-sequence
  token included; the shift between a position and the token it predicts lives in ``logprobs.py`` only;
* spans are half-open, ``[start, stop)``.

    Sample -> Group[Rollout] -> Group[ScoredRollout] -> Group[CreditedRollout] -> TrainingGroup -> UpdateResult
     data      rollout           rewards                 algorithm                 recipe           trainer
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

ResponseKey = tuple[str, int]
"""The key that a response is found by, wherever it went: its sample's id and ``response_index``."""

RewardKey = tuple[str, int]
"""The key that siblings are compared by: a reward's name and 0-based image, -1 where it is not given image by image."""

IMAGE_MARKER = "<image>"
"""The text in a data set's ready prompt at which an image stands."""
NUMERIC_ID = "id_is_number"
"""Key of ``Sample.metadata`` where the data set writes the id as a number; its own scripts compare types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """Where one page image lies; decoded by ``rsgrpo.data.images.loading.load_image``, never shipped as pixels.

    Attributes:
        path: the path as the data set writes it, such as ``imgs/15.png``; what people see in messages. Of an image
            without one what it is, such as ``record 3 image 0 (base64 5feceb66)`` or ``clip.mp4 at 1.5 s``.
        file: absolute path of the image file; empty if the image lies in a table.
        parquet_file: absolute path of the table (parquet or Arrow); empty if the image is a file.
        parquet_row: the number of the image's row in that table, from 0.
        parquet_column: the name of its column, with the bytes or a struct that holds them.
        parquet_index: its 0-based place in the cell's list; -1: the cell is no list.
    """

    path: str
    file: str = ""
    parquet_file: str = ""
    parquet_row: int = 0
    parquet_column: str = "image"
    parquet_index: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A rectangle on one image, as shares of its width and height: ``0 <= left < right <= 1``.

    Attributes:
        left: x of the left edge, as a share of the width.
        top: y of the upper edge, as a share of the height.
        right: x of the right edge, as a share of the width.
        bottom: y of the lower edge, as a share of the height.
        image_index: the 0-based image that it lies on; -1 where the data set does not say.
    """

    left: float
    top: float
    right: float
    bottom: float
    image_index: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: who speaks: ``system``, ``user`` or ``assistant``.
        text: what is said, with one ``<image>`` marker where an image stands.
    """

    role: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question over several page images, with its gold.

    Attributes:
        sample_id: the sample's id, unique in its data set; groups go by it.
        question: the bare question; empty if the data set only carries a ready ``prompt``.
        prompt: ready instruction text with one ``<image>`` marker an image; empty if the prompt
            template is to be rendered from ``question``.
        images: the pages, best retrieved first.
        answers: the accepted answers; for an unanswerable question whatever the data set writes.
        gold_response: a complete tagged gold response; empty where there is none (test sets).
        is_sufficient: whether the pages contain the answer.
        positive_images: the 0-based indexes of the gold pages, where known.
        turns: a whole conversation, where the data set holds one; every assistant turn is gold, and the
            markers of all turns together match ``images`` in order.
        choices: the options of a multiple-choice question, without their letters.
        boxes: the gold rectangles of a grounding question.
        task: the benchmark or subset that it belongs to, such as ``milebench/ALFRED``; may be empty.
        metadata: the further columns of the data set, as text.
        page_numbers: the number of each image in texts, such as (7, 12) where a filter left others out; empty: 1, 2 ….
    """

    sample_id: str
    question: str = ""
    prompt: str = ""
    images: tuple[ImageRef, ...] = ()
    answers: tuple[str, ...] = ()
    gold_response: str = ""
    is_sufficient: bool = True
    positive_images: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    task: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    page_numbers: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of each image in texts: ``page_numbers``, or 1, 2, … where there are none."""
        return self.page_numbers or tuple(range(1, len(self.images) + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """A sample's prompt, chat template applied, ready for the processor and for the engine.

    Attributes:
        sample_id: the id of the sample that it belongs to.
        text: the whole prompt text with ``<|vision_start|><|image_pad|><|vision_end|>`` once an image
            (one placeholder token, not yet expanded) up to and including the assistant header.
        images: the pages, in the order of their placeholders.
        opened_section: whose opening tag the chat template writes at the end of ``text`` already, so that a response
            begins inside of it; empty: none.
    """

    sample_id: str
    text: str
    images: tuple[ImageRef, ...] = ()
    opened_section: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptedSample:
    """A question with its prompt: what the rollout pool is asked to answer."""

    sample: Sample
    prompt: ChatPrompt


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rollout:
    """One sampled response.

    Attributes:
        sample_id: the id of the question that it answers.
        response_index: the index of the response in its group, 0 … n-1.
        token_ids: [R] int32, sampled ids, end-of-sequence included if it was sampled.
        logprobs: [R] float32, natural log, the engine's own log-probabilities at the sampling temperature.
        text: the ids' bytes as text; special tokens add nothing.
        token_char_starts: [R] int32, where in ``text`` each token's first character stands; a token
            that holds no first character of its own (a special token at the end, the tail of a
            multi-byte character) carries the start of the character that follows it, or ``len(text)``.
        finish_reason: why it ended: ``stop`` (end of sequence sampled) or ``length`` (cut at the limit).
        policy_version: the version stamp of the weights that sampled its first token.
        temperature: the temperature at which it was sampled; 0: greedily.
        token_versions: [R] int32, version stamp of the weights that sampled each token, never falling, where weights
            came in the middle (``rl.partial_rollouts``); None: ``policy_version`` sampled all of them.
        named_logprobs: [C] float32, natural log, how probable each of the tokens that the request named was as the
            first one; None: it named none.
    """

    sample_id: str
    response_index: int
    token_ids: IntArray
    logprobs: FloatArray
    text: str
    token_char_starts: IntArray
    finish_reason: str
    policy_version: int
    temperature: float = 1.0
    token_versions: IntArray | None = None
    named_logprobs: FloatArray | None = None

    @property
    def key(self) -> ResponseKey:
        """The key that finds the response: its sample's id and its index."""
        return (self.sample_id, self.response_index)

    def is_of_version(self, version: int) -> BoolArray:
        """[R] bool, which tokens the weights of that version sampled."""
        if self.token_versions is None:
            return np.full(len(self.token_ids), self.policy_version == version)
        return np.equal(self.token_versions, version)

    @property
    def newest_version(self) -> int:
        """Version stamp of the weights that sampled its last token."""
        versions = self.token_versions
        return self.policy_version if versions is None or not len(versions) else int(versions[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSpan:
    """Half-open range ``[start, stop)`` of response tokens."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScopedReward:
    """What one reward says of one rollout, and which tokens it speaks to.

    Attributes:
        name: the reward's name in the config.
        image_index: 0-based image for a reward given image by image, else -1. Siblings are compared
            by ``(name, image_index)``; the token count N_k of the loss goes by ``name`` alone.
        value: the value before the weight; None where the reward does not apply to this rollout.
        spans: the tokens of its scope; empty if the scope is absent and ``on_missing`` is ``skip``.
        scope_found: whether the scope stood in the response (``whole`` widens, this still says False).

    Example:
        ``ScopedReward(name="accuracy", value=1.0, spans=(TokenSpan(start=40, stop=62),), scope_found=True)``
    """

    name: str
    value: float | None
    spans: tuple[TokenSpan, ...]
    scope_found: bool
    image_index: int = -1

    @property
    def key(self) -> RewardKey:
        """The key by which siblings are compared: the reward's name and the image's index."""
        return (self.name, self.image_index)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredRollout:
    """A rollout with everything its rewards said.

    Attributes:
        rollout: as sampled.
        rewards: what its rewards said.
    """

    rollout: Rollout
    rewards: tuple[ScopedReward, ...]

    @property
    def key(self) -> ResponseKey:
        """The key that finds the response: its sample's id and its index."""
        return self.rollout.key

    @property
    def num_tokens(self) -> int:
        """Length of the response in tokens."""
        return len(self.rollout.token_ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CreditedRollout(ScoredRollout):
    """A scored rollout with the token weights of the loss, and the advantages that they came from.

    Attributes:
        advantages: A_ik, one number for each entry of ``rewards`` (0.0 where it gives none); with ``scoping: whole``
            every reward with a weight carries that of the weighted sum.
        positive_weights: [R] float32, P_t: the sum of w_k M A+ / (W N_k) over rewards (docs/concepts.md).
        negative_weights: [R] float32, Q_t: the same sum with A- in place of A+.
    """

    advantages: tuple[float, ...]
    positive_weights: FloatArray
    negative_weights: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Counterfactuals:
    """What the policy answers greedily, with all pages of a question and with one exchanged for another question's.

    Attributes:
        with_all: the text of the response to the prompt as it is.
        exchanged: for each image of the sample the texts of the responses without it, one for each page that stood in
            its place; empty for an image about which no reward asked.
    """

    with_all: str
    exchanged: tuple[tuple[str, ...], ...]


RolloutT = TypeVar("RolloutT", Rollout, ScoredRollout, CreditedRollout)
OtherT = TypeVar("OtherT", Rollout, ScoredRollout, CreditedRollout)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group(Generic[RolloutT]):
    """One prompt and its rollouts: as sampled (``RolloutGroup``), scored (``ScoredGroup``) or with credit.

    Attributes:
        sample: the question that was asked.
        prompt: the prompt as it was sent.
        prompt_token_ids: [P] int32, the ids that the engine used; an image's placeholder is expanded to its tokens.
        rollouts: all responses by ``response_index``; scored ones all carry the same reward keys in the same order.
        counterfactuals: what the policy answers without single pages; None where no reward asked.
    """

    sample: Sample
    prompt: ChatPrompt
    prompt_token_ids: IntArray
    rollouts: tuple[RolloutT, ...]
    counterfactuals: Counterfactuals | None = None

    @property
    def sample_id(self) -> str:
        """The id of the group's sample."""
        return self.sample.sample_id

    def with_rollouts(self, rollouts: Iterable[OtherT]) -> Group[OtherT]:
        """The same prompt with other rollouts, such as scored ones.

        Args:
            rollouts: the new rollouts, in the order of the present ones.
        """
        return Group(
            sample=self.sample,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            rollouts=tuple(rollouts),
            counterfactuals=self.counterfactuals,
        )


RolloutGroup = Group[Rollout]
ScoredGroup = Group[ScoredRollout]
CreditedGroup = Group[CreditedRollout]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingResponse:
    """One response as the trainer sees it: ids, and per-token weights of the loss.

    For policy optimisation ``positive_weights`` and ``negative_weights`` are P and Q. For supervised training
    ``positive_weights`` is the token's weight in the negative log-likelihood (1/N for a token mean over the
    optimizer step's N tokens, 0 where masked) and ``negative_weights`` is zero.

    Attributes:
        response_index: the index of the response in its group.
        token_ids: [R] int32, the ids of the response.
        positive_weights: [R] float32, at least 0: P, or the weight in the negative log-likelihood.
        negative_weights: [R] float32, at least 0: Q, or zero.
        rollout_logprobs: [R] float32, the engine's log-probabilities; None in supervised training.
        images: pages that the response itself shows (later questions of a conversation), each with a run of
            image placeholders in ``token_ids``.
        old_logprobs: [R] float32, pi_old's where the batch is used for several updates (what
            ``Policy.score`` gave before the first); None: the update's own forward pass.
        kl_weight: the weight of each token in the KL term, coefficient and denominator together; 0: there is no term.
        temperature: the sampling temperature; all of its log-probabilities are those of logits / temperature.
    """

    response_index: int
    token_ids: IntArray
    positive_weights: FloatArray
    negative_weights: FloatArray
    rollout_logprobs: FloatArray | None = None
    old_logprobs: FloatArray | None = None
    kl_weight: float = 0.0
    temperature: float = 1.0
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingGroup:
    """One prompt with its images, once, and the responses that share it.

    Attributes:
        sample_id: the id of the question.
        prompt: the text and the images of the prompt.
        prompt_token_ids: [P] int32 as the engine used them, checked against the trainer's own
            processing; None in supervised training.
        responses: the responses to the prompt, at least one.
    """

    sample_id: str
    prompt: ChatPrompt
    prompt_token_ids: IntArray | None
    responses: tuple[TrainingResponse, ...]

    @property
    def keys(self) -> tuple[ResponseKey, ...]:
        """The keys of its responses, in order."""
        return tuple((self.sample_id, response.response_index) for response in self.responses)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResponseStats:
    """What the trainer saw of one response's tokens during an update.

    Attributes:
        sample_id: the id of the question.
        response_index: the index of the response in its group.
        logprobs: [R] float32, log-probabilities in nats under the weights before this update.
        entropy: [R] float32, the entropy in nats of the whole next-token distribution; None where nobody asked for it.
    """

    sample_id: str
    response_index: int
    logprobs: FloatArray
    entropy: FloatArray | None = None

    @property
    def key(self) -> ResponseKey:
        """The key that finds the response: its sample's id and its index."""
        return (self.sample_id, self.response_index)
