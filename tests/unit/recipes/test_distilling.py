"""``rsgrpo distill-relevance`` on a small run folder, written down by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.distilling.distill_command import main
from recipes.distilling.judging import judge_groups
from recipes.distilling.pairs import PageStore, make_pairs
from recipes.distilling.writing import held_folder
from rsgrpo.config import EVISRAG, DataConfig, resolved_yaml
from rsgrpo.config.distill import DistillConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.retrieval.training.training_pairs import image_digests, read_training_pairs
from rsgrpo.run.recorder import read_groups, record_groups
from rsgrpo.types import ImageRef, Sample
from tests.unit.report_run import credited_group, make_rollout, run_config

_IRRELEVANT = "no relevant information"


def _answer(answer: str, *lines: str) -> str:
    evidence = "\n".join(f"[{number}]: {line}" for number, line in enumerate(lines, 1) if line)
    return f"<observe>o</observe><evidence>{evidence}</evidence><think>t</think><answer>{answer}</answer>"


class Run:
    """A run folder whose groups a test writes down."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "pages").mkdir(parents=True)
        (root / "config.yaml").write_text(resolved_yaml(run_config()))

    def page(self, name: str, grey: int) -> ImageRef:
        file = self.root / "pages" / f"{name}.png"
        Image.new("L", (30, 30), grey).save(file)
        return ImageRef(path=f"pages/{name}.png", file=str(file))

    def add(self, sample_id: str, pages: list[ImageRef], *texts: str, step: int = 1, **fields: Any) -> None:
        sample = Sample(
            sample_id=sample_id,
            images=tuple(pages),
            answers=("7",),
            **{"question": f"What is on {sample_id}?", "positive_images": (0,), **fields},
        )
        rollouts = [make_rollout(text, index, sample_id=sample_id) for index, text in enumerate(texts)]
        values: list[float | None] = [1.0 if "<answer>7<" in text else 0.0 for text in texts]
        record_groups(
            self.root / "rollouts.jsonl", "rl", step, [credited_group(sample, rollouts, {"accuracy": values})]
        )

    def distil(self, *arguments: str) -> int:
        return main([str(self.root), *arguments])

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "distilled" / "pairs.jsonl").read_text().splitlines()]

    @property
    def counts(self) -> dict[str, Any]:
        return json.loads((self.root / "distilled" / "counts.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_rows_name_pages_that_lie_beside_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = run.page("a", 10), run.page("b", 20), run.page("c", 30)
    good = _answer("7", "the digit is 7", _IRRELEVANT, _IRRELEVANT)
    run.add("one", [a, b, c], good, good, good, _answer("4", _IRRELEVANT, "the digit is 4", ""))
    assert run.distil() == 0
    (row,) = run.rows
    # Three correct responses: M = 3, all cite page 1: 3 / (3 + 1)
    assert (row["query"], row["weight"], row["source"]) == ("What is on one?", 0.75, "distilled")
    folder = run.root / "distilled"
    assert (folder / row["image"]).read_bytes() == Path(a.file).read_bytes()
    negatives = {(folder / name).read_bytes() for name in row["negatives"]}
    assert negatives == {Path(page.file).read_bytes() for page in (b, c)}
    assert run.counts["gold"] == {
        "questions": 1,
        "gold_pages": 1,
        "positives": 1,
        "positive_precision": 1.0,
        "positive_recall": 1.0,
        "negatives": 2,
        "negative_precision": 1.0,
    }
    assert run.counts["correct_frac"] == 0.75
    printed = capsys.readouterr().out
    assert "1 rows of 1 questions: 1 positives, 2 hard negatives" in printed
    assert not (folder / "writing").exists()


def test_a_retriever_reads_the_rows(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    run.add("one", [a, b], *[_answer("7", "the digit is 7", _IRRELEVANT)] * 3)
    assert run.distil() == 0
    file = run.root / "distilled" / "pairs.jsonl"
    (pair,) = read_training_pairs([str(file)], DataConfig(), ImageRules()).pairs
    assert (pair.query, pair.weight, pair.source) == ("What is on one?", 0.75, "distilled")
    assert pair.page.digest == image_digests([a])[a]
    assert [page.digest for page in pair.negatives] == [image_digests([b])[b]]


def test_responses_of_several_steps_count_together(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    run.add("one", [a, b], _answer("7", "the digit is 7", _IRRELEVANT), step=1)
    run.add("one", [a, b], *[_answer("7", "the digit is 7", "and 7 here")] * 2, step=2)
    assert run.distil() == 0
    # M = 3. Page b: two for it, one against, 2 < 0.8 * 3: disputed, so it is neither.
    (row,) = run.rows
    assert (row["weight"], row["negatives"]) == (0.75, [])
    assert run.counts["left_out_pages"] == {"disputed": 1}


def test_a_page_is_never_both_across_questions_and_pictures(run: Run) -> None:
    a, b, copy = run.page("a", 10), run.page("b", 20), run.page("copy of a", 10)
    good = [_answer("7", "the digit is 7", _IRRELEVANT)] * 3
    run.add("one", [a, copy], *good)  # the negative shows what the positive shows
    run.add("two", [a, b], *good, question="What is it?")
    run.add("three", [b, a], *good, question="What is  it?")  # the same query: each page is called both
    assert run.distil() == 0
    (row,) = run.rows
    assert (row["query"], row["negatives"]) == ("What is on one?", [])
    left_out = run.counts["left_out_pages"]
    assert left_out == {"disputed between questions of the same words": 2, "same picture as a positive": 1}


def test_questions_are_left_out_by_reason(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    good = [_answer("7", "the digit is 7", _IRRELEVANT)] * 3
    run.add("good", [a, b], *good)
    run.add("wrong", [a, b], *[_answer("4", _IRRELEVANT, "the digit is 4")] * 3)
    run.add("guessed", [a, b], *[_answer("7", _IRRELEVANT, _IRRELEVANT)] * 3)
    refusal = _answer("insufficient to answer", _IRRELEVANT, _IRRELEVANT)
    run.add("none", [a, b], *[refusal] * 3, is_sufficient=False, positive_images=())
    run.add("prompt", [a, b], *good, question="<image><image> What is it?")
    assert run.distil() == 0
    assert [row["query"] for row in run.rows] == ["What is on good?"]
    assert run.counts["left_out_questions"] == {
        "no correct response": 1,
        "no evidence cited": 1,
        "unanswerable": 1,
        "no bare question": 1,
    }
    # Gold is known of the four that their pages answer: a positive each of good and prompt, both right; 2 of 4 found
    assert (run.counts["gold"]["positive_precision"], run.counts["gold"]["positive_recall"]) == (1.0, 0.5)


def test_a_reward_of_the_run_may_say_what_is_correct(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    run.add("one", [a, b], *[_answer("7", "the digit is 7", _IRRELEVANT)] * 3)
    assert run.distil("distill.correctness=accuracy") == 0
    assert run.rows[0]["weight"] == 0.75
    assert run.distil("distill.correctness=beauty") == 1
    message = capsys.readouterr().err
    assert "distill.correctness=beauty" in message and "accuracy" in message


def test_pages_that_cannot_be_read_are_named_and_counted(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = run.page("a", 10), run.page("b", 20), run.page("c", 30)
    good = [_answer("7", "the digit is 7", _IRRELEVANT)] * 3
    run.add("one", [a, b], *good)
    run.add("two", [c, a], *good)
    Path(b.file).write_bytes(b"no image")
    Path(c.file).unlink()
    assert run.distil() == 0
    assert [row["negatives"] for row in run.rows] == [[]]
    assert run.counts["left_out_questions"] == {"no positive that can be read": 1}
    assert run.counts["left_out_pages"] == {"cannot be read": 2}
    assert "pages/c.png" in capsys.readouterr().err


def test_the_page_to_look_at_shows_texts_as_texts_and_loads_nothing(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    evil = '<script>alert("x")</script>'
    run.add("one", [a, b], *[_answer("7", f"{evil} 7", _IRRELEVANT)] * 3, question=f"What {evil}?")
    run.add("two", [a, b], *[_answer("4", "the digit is 4", "")] * 3)
    assert run.distil() == 0
    page = (run.root / "distilled" / "sample.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert page.count('src="data:image/png') == 4
    assert "left out: no correct response" in page and "positive 0.75" in page


def test_gold_lines_tell_gold_pages_where_nothing_else_does(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    gold_response = _answer("7", _IRRELEVANT, "the digit is 7")
    texts = [_answer("7", "the digit is 7", _IRRELEVANT)] * 3
    run.add("one", [a, b], *texts, positive_images=(), gold_response=gold_response)
    assert run.distil() == 0
    gold = run.counts["gold"]
    assert (gold["positive_precision"], gold["negative_precision"]) == (0.0, 0.0)  # gold says the opposite


def test_labels_are_read_by_the_numbers_that_pages_keep(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    text = _answer("7").replace("<evidence>", f"<evidence>[4]: {_IRRELEVANT}\n[9]: the digit is 7")
    run.add("one", [a, b], *[text] * 3, page_numbers=(4, 9), positive_images=(1,))
    assert run.distil() == 0
    (row,) = run.rows
    assert (run.root / "distilled" / row["image"]).read_bytes() == Path(b.file).read_bytes()
    assert len(row["negatives"]) == 1 and run.counts["gold"]["positive_precision"] == 1.0
    assert "[9] b.png" in (run.root / "distilled" / "sample.html").read_text()


def test_a_page_shown_twice_is_one_page(run: Run) -> None:
    a, b = run.page("a", 10), run.page("b", 20)
    run.add("one", [a, b, a], *[_answer("7", "the digit is 7", _IRRELEVANT, _IRRELEVANT)] * 3)
    groups = read_groups(run.root / "rollouts.jsonl")
    (question,) = judge_groups(groups, DistillConfig(), EVISRAG)
    assert [label.decision for label in question.labels.pages] == ["positive", "negative"]
    assert question.gold == (True, False)
    assert question.lines == ("the digit is 7", _IRRELEVANT)


def test_only_the_strongest_negatives_stand_in_a_row(run: Run) -> None:
    pages = [run.page(str(number), 10 * number) for number in range(4)]
    texts = [_answer("7", "the digit is 7", _IRRELEVANT, _IRRELEVANT, _IRRELEVANT)] * 2
    run.add("one", pages, *texts, _answer("7", "the digit is 7", "", _IRRELEVANT, ""))
    questions = list(judge_groups(read_groups(run.root / "rollouts.jsonl"), DistillConfig(), EVISRAG))
    store = PageStore(run.root / "out", ImageRules())
    settings = dataclasses.replace(DistillConfig(), max_negatives=1)
    (row,) = make_pairs(questions, settings, store).rows
    # Page 3 is called irrelevant by all three, the two others by two of them.
    assert (run.root / "out" / row["negatives"][0]).read_bytes() == Path(pages[2].file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("--stage", "after_rl"), "only of rl; add --samples", id="stage"),
        pytest.param(("distill.min_agreement=0.4",), "must lie above 0.5", id="bound"),
        pytest.param(("distill.agreement=0.9",), "there is no setting distill.agreement", id="name"),
        pytest.param(("rollout.sampling.temperature=1",), "add --samples", id="sampling_alone"),
        pytest.param(("--samples", "0"), "at least 1", id="no_samples"),
        pytest.param(("--samples", "2", "rl.max_steps=3"), "cannot be changed here", id="other_setting"),
        pytest.param(("--samples", "2"), "holds no trained model", id="untrained"),
    ],
)
def test_slips_are_told_in_one_sentence(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    run.add("one", [run.page("a", 10)], _answer("7", "the digit is 7"))
    assert run.distil(*arguments) in (1, 2)
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_two_calls_do_not_write_into_one_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.add("one", [run.page("a", 10)], _answer("7", "the digit is 7"))
    with held_folder(run.root / "distilled"):
        assert run.distil() == 1
        assert "another call writes to" in capsys.readouterr().err
    assert run.distil() == 0


def test_pairs_of_another_origin_are_not_written_over(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.add("one", [run.page("a", 90), run.page("b", 180)], _answer("7", "seven", _IRRELEVANT))
    mine = run.root / "mine"
    mine.mkdir()
    (mine / "pairs.jsonl").write_text("by hand")
    assert run.distil("--out", str(mine)) == 1
    assert "was not written by rsgrpo distill-relevance and would be lost" in capsys.readouterr().err
    assert (mine / "pairs.jsonl").read_text() == "by hand"
    for _ in range(2):  # those of an earlier call are
        assert run.distil("distill.min_weight=0.1") == 0


def test_a_run_that_gives_no_pair_says_why_and_shows_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.add("one", [run.page("a", 10)], _answer("4", "the digit is 4"))
    assert run.distil() == 1
    assert "1 no correct response" in capsys.readouterr().err
    assert (run.root / "distilled" / "sample.html").exists()
