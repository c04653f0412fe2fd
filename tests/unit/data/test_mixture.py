"""Mixtures: weights, epochs, held-out records, distractors; all a function of seed and position."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from rsgrpo.config import ConfigError, DataConfig, DistractorConfig, SourceConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.mixture import Mixture, with_distractors
from rsgrpo.types import ImageRef, Sample, Turn


def conversation(number: int, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": f"A{number}"}]
    return {"id": "same", "image": f"{number}.jpg", "conversations": turns, **more}


def source(folder: Path, name: str, count: int, *extra: Any, **settings: Any) -> SourceConfig:
    file = folder / f"{name}.json"
    file.write_text(json.dumps([*(conversation(n) for n in range(count)), *extra]))
    return SourceConfig(path=str(file), **settings)


def mix(*sources: SourceConfig, **settings: Any) -> Mixture:
    given: dict[str, Any] = {"seed": 0, "num_held_out": 0, "on_bad_record": "error", "check_media": False} | settings
    return Mixture(sources, **given)


def test_weights_say_how_often_an_epoch_shows_each_record(tmp_path: Path):
    mixture = mix(
        source(tmp_path, "a", 10, weight=2.0), source(tmp_path, "b", 10, weight=0.5), source(tmp_path, "c", 4)
    )
    # 10·2 + 10·0.5 + 4
    assert len(mixture) == 29
    orders = [mixture.order(epoch).tolist() for epoch in range(3)]
    for order in orders:
        counts = Counter(order)
        assert all(counts[key] == 2 for key in range(10))
        assert sum(counts[key] for key in range(10, 20)) == 5
        assert max(counts[key] for key in range(10, 20)) == 1
        assert all(counts[key] == 1 for key in range(20, 24))
    assert orders[0] != orders[1]
    assert {key for order in orders for key in order if 10 <= key < 20} > set(orders[0]) & set(range(10, 20))
    assert mix(source(tmp_path, "a", 10, weight=1.25)).order(0).tolist() != list(range(12))


def test_the_order_goes_by_seed_and_epoch_alone(tmp_path: Path):
    data = source(tmp_path, "a", 20)
    assert mix(data).order(3).tolist() == mix(data).order(3).tolist()
    assert mix(data, seed=1).order(3).tolist() != mix(data).order(3).tolist()


def test_samples_say_where_they_come_from_and_their_ids_are_unique(tmp_path: Path):
    mixture = mix(source(tmp_path, "a", 3), source(tmp_path, "b", 2))
    samples = [mixture.sample(key) for key in range(5)]
    assert [sample.sample_id.split("/")[0] for sample in samples] == ["0.0", "0.1", "0.2", "1.0", "1.1"]
    assert [sample.turns[1].text for sample in samples] == ["A0", "A1", "A2", "A0", "A1"]


def test_held_out_records_are_never_trained_on(tmp_path: Path):
    mixture = mix(source(tmp_path, "a", 50, weight=3.0), source(tmp_path, "b", 50), num_held_out=8)
    assert len(mixture.held_out) == 8
    assert not set(mixture.held_out.tolist()) & set(mixture.order(0).tolist())
    # at most a tenth: 10 of 100
    assert len(mix(source(tmp_path, "a", 50), source(tmp_path, "b", 50), num_held_out=64).held_out) == 10


def test_a_gold_response_is_never_trained_on_with_some_of_its_images(tmp_path: Path):
    images = [f"{number}.png" for number in range(6)]
    row = {"qid": "a", "asked": "Q" + "<image>" * 6, "answer": "A", "image": images}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    data = SourceConfig(format="evisrag", path=str(tmp_path / "a.jsonl"))
    sample = mix(data, columns=DataConfig(max_images=6, prompt_column="asked")).sample(0)
    assert len(sample.images) == 6
    with pytest.raises(DataError, match=r"6 images, more than data\.max_images=5"):  # five is the default
        mix(data, columns=DataConfig(prompt_column="asked"))


def test_bad_records_stop_the_run_or_are_left_out_and_counted(tmp_path: Path):
    with_bad = source(tmp_path, "a", 3, {"conversations": []}, 7)
    with pytest.raises(DataError, match=r"3 of 5 records can be used(.|\n)*2 × wrong type(.|\n)*on_bad_sample=skip"):
        mix(with_bad)
    mixture = mix(with_bad, on_bad_record="skip", max_skipped_frac=0.4)
    assert (len(mixture), mixture.reports[0].counts()) == (3, {"wrong type": 2})
    with pytest.raises(DataError, match="0 of 0 records"):
        mix(source(tmp_path, "empty", 0), on_bad_record="skip")
    with pytest.raises(DataError, match="missing media"):
        mix(source(tmp_path, "b", 2), check_media=True)


def test_a_file_that_breaks_off_stops_the_run_with_the_byte_to_go_on_from(tmp_path: Path):
    data = source(tmp_path, "a", 3)
    text = Path(data.path).read_text()
    Path(data.path).write_text(text[:-40])
    # the second record ends in front of the last ", {"
    end = text.rindex(', {"id"')
    with pytest.raises(
        DataError, match=rf"2 of 3 records(.|\n)*truncated JSON(.|\n)*byte {len(text) - 40} .*byte {end} "
    ):
        mix(data)
    assert mix(data, on_bad_record="skip").reports[0].counts() == {"truncated JSON": 1}


def test_ids_that_stand_twice_are_counted_and_kept_apart(tmp_path: Path):
    mixture = mix(source(tmp_path, "a", 3))
    assert [(remark.reason, remark.count) for remark in mixture.reports[0].remarks] == [("id twice", 2)]
    assert len({mixture.sample(key).sample_id for key in range(3)}) == 3


def shown(*relevant: int, num_images: int = 2) -> Sample:
    turns = (Turn(role="user", text="<image>" * num_images + "\nQ"), Turn(role="assistant", text="A"))
    images = tuple(ImageRef(path=f"{n}.jpg") for n in range(num_images))
    return Sample(sample_id="s", images=images, turns=turns, positive_images=relevant)


def test_distractors_are_mixed_in_and_the_relevant_images_are_named():
    settings = DistractorConfig(max_images=3, relevance="named")
    others = [ImageRef(path=f"other{n}.jpg") for n in range(3)]
    seen = set()
    for seed in range(40):
        found = with_distractors(shown(1), others, settings, np.random.default_rng(seed))
        paths = [image.path for image in found.images]
        assert sorted(paths) == ["0.jpg", "1.jpg", "other0.jpg", "other1.jpg", "other2.jpg"]
        # what a question calls the first stays before what it calls the second
        assert paths.index("0.jpg") < paths.index("1.jpg")
        # only image 1 of the sample is relevant; people count from 1
        place = paths.index("1.jpg")
        assert found.positive_images == (place,)
        assert found.turns[0].text == "<image>" * 5 + "\nQ"
        assert found.turns[1].text == f"Relevant images: {place + 1}.\nA"
        seen.add(place)
    assert seen == {1, 2, 3, 4}


def test_all_images_are_relevant_where_none_is_named():
    found = with_distractors(shown(), [ImageRef(path="o")], DistractorConfig(max_images=1), np.random.default_rng(0))
    assert [found.images[n].path for n in found.positive_images] == ["0.jpg", "1.jpg"]
    assert found.turns[1].text == "A"


def test_a_filter_shows_only_what_is_labelled_relevant():
    others = [ImageRef(path=f"other{n}.jpg") for n in range(4)]
    settings = DistractorConfig(max_images=4, relevance="filter")
    found = with_distractors(shown(1), others, settings, np.random.default_rng(0))
    assert [image.path for image in found.images] == ["1.jpg"]
    assert (found.positive_images, found.turns[0].text, found.turns[1].text) == ((0,), "<image>\nQ", "A")


def test_noise_lets_irrelevant_images_through_as_often_as_it_says():
    settings = DistractorConfig(max_images=20, relevance="filter", noise_chance=0.25, noise_max_frac=0.5)
    others = [ImageRef(path=f"other{n}") for n in range(20)]
    rng = np.random.default_rng(0)
    numbers = []
    for _ in range(2000):
        found = with_distractors(shown(0, 1), others, settings, rng)
        assert {"0.jpg", "1.jpg"} <= {image.path for image in found.images}
        numbers.append(len(found.images) - 2)
    # round(u · 20) with u even in [0, 0.5] is 0 in 5 % of the draws and 10 in 5 %, its mean 5; a quarter draws:
    # 2000 · 0.25 · 0.95 = 475 conversations with any (deviation 19), 2000 · 0.25 · 5 = 2500 images (deviation 128)
    assert abs(sum(number > 0 for number in numbers) - 475) < 80
    assert abs(sum(numbers) - 2500) < 500
    assert max(numbers) == 10


def test_labels_of_the_data_count_without_distractors_too(tmp_path: Path):
    file = tmp_path / "m.json"
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    labelled = {"conversations": turns, "image": ["a.jpg", "b.jpg"], "relevant_images": [0, 1]}
    file.write_text(json.dumps([labelled, {"conversations": turns}]))
    mixture = mix(SourceConfig(format="mirage", path=str(file), distractors=DistractorConfig(relevance="filter")))
    assert [[image.path for image in mixture.sample(key).images] for key in (0, 1)] == [["b.jpg"], []]


def test_distractors_come_from_other_records_and_differ_from_draw_to_draw(tmp_path: Path):
    settings = DistractorConfig(min_images=2, max_images=5)
    mixture = mix(source(tmp_path, "a", 30, format="mirage", distractors=settings))
    numbers = set()
    for draw in range(40):
        sample = mixture.sample(4, draw)
        paths = [image.path for image in sample.images]
        assert len(set(paths)) == len(paths)
        assert [paths[n] for n in sample.positive_images] == ["4.jpg"]
        numbers.add(len(paths) - 1)
        assert sample == mixture.sample(4, draw)
    assert numbers == {2, 3, 4, 5}


def test_distractors_need_their_images_in_the_first_question():
    turns = (*shown().turns, Turn(role="user", text="<image>and?"), Turn(role="assistant", text="B"))
    sample = Sample(sample_id="s", images=(ImageRef(path="0"),), turns=turns)
    with pytest.raises(DataError, match="'s' shows images in later questions"):
        with_distractors(sample, [], DistractorConfig(max_images=1), np.random.default_rng(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DistractorConfig(min_images=3, max_images=2),
        lambda: DistractorConfig(max_images=2, noise_chance=0.1),
        lambda: DistractorConfig(noise_chance=1.1, relevance="named"),
        lambda: DistractorConfig(noise_max_frac=-0.1),
        lambda: DistractorConfig(relevance=cast(Any, "both")),
        lambda: SourceConfig(path="a", weight=0.0),
        lambda: SourceConfig(path="a", format="voc"),
        lambda: SourceConfig(format="llava"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any):
    with pytest.raises(ConfigError):
        make()
