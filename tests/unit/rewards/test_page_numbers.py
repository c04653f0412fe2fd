"""Pages keep their numbers where a filter left others out: in prompts, rewards, metrics, files and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rewards.functions.evidence import evidence, evidence_per_image
from rewards.functions.haystack import needle_found
from rewards.scopes import ScopeRequest, locate_scopes
from rsgrpo.config import DataConfig, PromptConfig, ScopeConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples, write_evisrag
from rsgrpo.data.files import DataError
from rsgrpo.data.kept_pages import with_pages, with_shown_gold
from rsgrpo.evaluation.metrics import score_response
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.run.recorder import read_groups, record_evaluation
from rsgrpo.run.report.rollouts import collect_rollouts
from rsgrpo.text.page_labels import label_index
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Box, ImageRef, Sample, Turn
from tests.unit.report_run import make_rollout
from tests.unit.reward_calls import make_call

IRRELEVANT = "no relevant information"


def response(*lines: str) -> str:
    return f"<observe>o</observe><evidence>{chr(10).join(lines)}</evidence><think>t</think><answer>12</answer>"


GOLD = response(*(f"[{n}]: {'the price is 12' if n == 7 else IRRELEVANT}" for n in range(1, 13)))
WHOLE = Sample(
    sample_id="q",
    question="What is the price?",
    prompt="<image>" * 12 + "Price?",
    images=tuple(ImageRef(path=f"{n}.png") for n in range(1, 13)),
    answers=("12",),
    gold_response=GOLD,
    positive_images=(6,),
    boxes=(Box(left=0, top=0, right=1, bottom=1, image_index=6), Box(left=0, top=0, right=1, bottom=1, image_index=2)),
)
KEPT = with_pages(WHOLE, (6, 11))


@given(st.lists(st.integers(1, 30), unique=True, max_size=6), st.integers(1, 30))
def test_a_label_means_the_page_of_its_number_and_else_none(numbers, number) -> None:
    index = label_index(number, numbers)
    if not numbers:
        assert index == number - 1
    elif number in numbers:
        assert numbers[index] == number
    else:
        assert index >= len(numbers)
    assert len({label_index(other, numbers) for other in range(1, 31)}) == 30  # no two labels mean the same page


def test_the_sample_keeps_numbers_gold_pages_boxes_and_markers() -> None:
    assert [image.path for image in KEPT.images] == ["7.png", "12.png"]
    assert (KEPT.page_numbers, KEPT.numbers, WHOLE.numbers) == ((7, 12), (7, 12), tuple(range(1, 13)))
    assert KEPT.positive_images == (0,)
    assert [box.image_index for box in KEPT.boxes] == [0]
    assert KEPT.prompt == "<image><image>Price?"
    # Filtered twice, a page has the number that it had at first.
    assert with_pages(KEPT, (1,)).page_numbers == (12,)
    with pytest.raises(DataError, match="conversation"):
        with_pages(Sample(sample_id="c", turns=(Turn(role="user", text="hi"),)), (0,))


def test_prompts_show_each_page_behind_its_number(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ question }} {{ page_numbers }}")
    order = {"text_first": "What is the price? (7, 12)", "markers": None}
    for name, text in order.items():
        settings = PromptConfig(path=str(template), image_order=name)  # type: ignore[arg-type]  # both are orders
        parts = PromptWriter(settings).parts(KEPT)
        labels = ("\n[7]:", None, "\n[12]:", None)
        assert parts == ((text, *labels) if text else (*labels, "Price?"))
    plain = PromptWriter(PromptConfig(path=str(template), image_order="images_first")).parts(with_pages(WHOLE, (1,)))
    assert plain == ("\n[2]:", None, "What is the price? (2,)")


def test_the_evidence_prompt_speaks_of_numbers_only_where_there_are_some() -> None:
    writer = PromptWriter(PromptConfig(path="configs/prompt/evidence.jinja", image_order="images_first"))
    assert "2 page images, each behind its number in square brackets, and" in str(writer.parts(KEPT)[-1])
    unfiltered = str(writer.parts(WHOLE)[-1])
    assert "12 page images, numbered from 1 in the order in which they are shown, and" in unfiltered


def test_evidence_of_a_filtered_question_goes_by_numbers() -> None:
    good = response("[7]: the price is 12", f"[12]: {IRRELEVANT}")
    by_place = response("[1]: the price is 12", f"[2]: {IRRELEVANT}")
    scores = {
        text: score_response(text, ("12",), gold_response=GOLD, page_numbers=KEPT.page_numbers).evidence_f1
        for text in (good, by_place)
    }
    # Two pages are judged, the ten that were left out ask nothing; pages 1 and 2 are not shown.
    assert scores == {good: 1.0, by_place: 0.0}


def test_gold_evidence_on_a_page_that_was_left_out_is_missed() -> None:
    missed = with_pages(WHOLE, (0, 1))
    text = response("[7]: the price is 12", f"[1]: {IRRELEVANT}", f"[2]: {IRRELEVANT}")
    score = score_response(text, ("12",), gold_response=GOLD, page_numbers=missed.page_numbers)
    # Pages 1 and 2 are right, page 7 was never seen: guessing its text earns nothing.
    assert score.evidence_f1 == pytest.approx(2 / 3)
    call = make_call(missed, text, parsed=parse_response(text, page_numbers=missed.page_numbers))
    # Weights 3 for page 7 (0) and 1 for each of 1 and 2 (1), and 1 for the label of a page that is not there.
    assert evidence(call) == pytest.approx(2 / (3 + 1 + 1 + 1))


def test_rewards_and_scopes_find_the_line_of_each_shown_page() -> None:
    text = response(f"[12]: {IRRELEVANT}", "[7]: the price is 12")
    parsed = parse_response(text, page_numbers=KEPT.page_numbers)
    call = make_call(KEPT, text, parsed=parsed)
    assert evidence(call) == 1.0
    assert evidence_per_image(call) == [1.0, 1.0]
    assert needle_found(call) == 1.0
    request = ScopeRequest(scope=ScopeConfig(evidence_line=True), on_missing="skip")
    (located,) = locate_scopes([request], parsed, np.arange(len(text) + 1), 2)
    lines = [text[scope.spans[0].start : scope.spans[0].stop].strip() for scope in located]
    assert lines == ["[7]: the price is 12", f"[12]: {IRRELEVANT}"]


def test_a_response_to_imitate_has_lines_of_shown_pages_alone() -> None:
    assert with_shown_gold(KEPT).gold_response.count("]:") == 2
    assert "[7]: the price is 12" in with_shown_gold(KEPT).gold_response
    assert parse_response(with_shown_gold(KEPT).gold_response).is_well_formed
    assert with_shown_gold(WHOLE) == WHOLE


def test_numbers_are_written_and_read_and_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    images = {ref.path: Image.new("RGB", (30, 30)) for ref in KEPT.images}
    write_evisrag(tmp_path / "test.jsonl", [KEPT], images, layout="test", as_table=False)
    (read,) = load_samples(str(tmp_path / "test.jsonl"), DataConfig(), is_training=False).samples
    assert (read.page_numbers, read.positive_images) == ((7, 12), (0,))
    (cut,) = load_samples(str(tmp_path / "test.jsonl"), DataConfig(max_images=1), is_training=False).samples
    assert cut.page_numbers == (7,)
    row = json.loads((tmp_path / "test.jsonl").read_text())
    for wrong in ([7], [7, 7], [0, 1], ["7", "12"], 7):
        (tmp_path / "wrong.jsonl").write_text(json.dumps({**row, "page_numbers": wrong}) + "\n")
        with pytest.raises(DataError, match="page_numbers must be 2 different whole numbers"):
            load_samples(str(tmp_path / "wrong.jsonl"), DataConfig(), is_training=False)


def test_the_report_calls_pages_by_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    record_evaluation(file, "checkpoint", [KEPT], [make_rollout("x", sample_id="q")])
    (group,) = read_groups(file)
    assert group.page_numbers == (7, 12)
    (document,) = collect_rollouts([group], {}, tmp_path, ImageRules())["groups"]
    assert [(image["path"], image["number"]) for image in document["images"]] == [("7.png", 7), ("12.png", 12)]
