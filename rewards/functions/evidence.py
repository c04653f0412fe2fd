"""Does the section with one line per image (EVisRAG's evidence) say of every image what it should?

Each image scores by itself (``rsgrpo.evaluation.metrics.evidence_scores``): an image that does not help
must be marked ``no relevant information`` and nothing else; the line of one that does is compared with
the gold line by set-F1, so words that gold lacks cost precision. What a policy might try:

* listing every reading, or appending the marker to invented evidence: an irrelevant image then scores 0,
  a relevant one loses precision;
* marking every image irrelevant: earns the irrelevant images only, w_0 n_0 / (w_0 n_0 + w_1 n_1); with
  one helpful image of three that is 2/5 at the weights 3 and 1 (a question that no image answers is
  rightly worth 1 this way);
* labels for images that do not exist: each counts as an irrelevant image judged wrongly;
* a label twice: the first line counts.

Where a filter left pages out (``Sample.page_numbers``), gold evidence on one of these is missed, and irrelevant ones
count for nothing.
"""

from __future__ import annotations

from rewards.base import IMAGE_LINES, RewardCall, needs_gold
from rewards.gold import parsed_gold
from rsgrpo.evaluation.metrics import evidence_scores
from rsgrpo.text.normalise import is_irrelevant


@needs_gold(IMAGE_LINES)
def evidence(call: RewardCall, relevant_weight: float = 3.0, irrelevant_weight: float = 1.0) -> float:
    """Weighted mean of the images' scores, in [0, 1] for any number of images.

    Args:
        call: the response to judge, with its sample.
        relevant_weight: how much an image counts whose gold line holds evidence.
        irrelevant_weight: how much an image counts that does not help, and a label without an image.

    Returns:
        Σ w_i s_i / Σ w_i; 0.0 where the response has no closed section with lines per image.

    Example:
        Gold: evidence on image 1, images 2 and 3 irrelevant. A response with image 1's line exact and
        no others scores 3 / (3 + 1 + 1) = 0.6.
    """
    if call.parsed.content(call.parsed.format.lines_section) is None:
        return 0.0
    gold = parsed_gold(call.sample.gold_response, call.parsed.format, call.sample.page_numbers)
    gold_lines = gold.first_lines()
    scores = evidence_scores(call.parsed, gold, num_shown=len(call.sample.page_numbers) or None)
    total = earned = 0.0
    for image_index, score in scores.items():
        weight = irrelevant_weight if is_irrelevant(gold_lines[image_index].text) else relevant_weight
        total += weight
        earned += weight * score
    num_images = len(call.sample.images) or len(gold_lines)
    total += irrelevant_weight * sum(image_index >= num_images for image_index in call.parsed.first_lines())
    return earned / total if total else 0.0


@needs_gold(IMAGE_LINES)
def evidence_per_image(call: RewardCall) -> list[float | None]:
    """Each image's own score, for the scope ``evidence_line``.

    Returns:
        One value for each image of the sample: its score in [0, 1], 0.0 where the response has no line for it, None
        where gold has none.
    """
    sample = call.sample
    scores = evidence_scores(call.parsed, parsed_gold(sample.gold_response, call.parsed.format, sample.page_numbers))
    return [scores.get(image_index) for image_index in range(len(sample.images))]
