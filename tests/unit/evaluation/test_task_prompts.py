"""Every benchmark's words and images, against vectors of the originals; layouts; chat turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.evaluation.benchmarks.haystack_files import needle_positions
from rsgrpo.evaluation.benchmarks.mig_bench import extract_boxes, strict_boxes
from rsgrpo.evaluation.prompts.combine import combine_grid, combine_images
from rsgrpo.evaluation.prompts.grounding import grounding_text, shares_from_pixels, target_image
from rsgrpo.evaluation.prompts.haystack import haystack_at, haystack_text, shuffled_haystack
from rsgrpo.evaluation.prompts.milebench import ContextLimit, milebench_prompt
from rsgrpo.evaluation.prompts.turns import TaskPromptError, chat_prompt, openai_messages, user_prompt
from rsgrpo.types import ImageRef
from tests.oracles.upstream_messages import reference_messages
from tests.tiny_model import write_images

Parity = Callable[[str], list[dict[str, Any]]]


class CharacterTokens:
    """One token a character, as the vectors were made."""

    @staticmethod
    def encode(text: str) -> list[int]:
        return [ord(character) for character in text]

    @staticmethod
    def decode(ids: Any) -> str:
        return "".join(chr(token_id) for token_id in ids)


def _limit(max_tokens: int, image_tokens: int) -> ContextLimit:
    return ContextLimit(
        max_tokens=max_tokens,
        image_tokens=image_tokens,
        encode=CharacterTokens.encode,
        decode=CharacterTokens.decode,
    )


def test_milebench_prompts_equal_the_originals(parity: Parity) -> None:
    for vector in parity("milebench_prompt"):
        inputs = vector["inputs"]
        annotation = inputs["annotation"]
        instance = annotation["task_instance"]
        num_canvases = inputs["combine_image"] or 0
        combined = instance[f"combined_{num_canvases}_images"] if num_canvases else []
        if vector["expected"].get("raises"):
            assert len(combined) > 1  # refused where data are put together: test_benchmark_tasks.py
            continue
        built = milebench_prompt(
            dataset=inputs["dataset_name"],
            instruction=inputs["task_instructions"][annotation["task_instruction_id"]],
            context=instance["context"],
            num_images=len(instance["images_path"]),
            choices=instance.get("choice_list"),
            limit=_limit(inputs["max_context_len"], inputs["n_tokens_per_image"]),
            is_combined=bool(num_canvases),
        )
        shown = combined if num_canvases else [instance["images_path"][index] for index in built.kept_images]
        assert built.prompt == vector["expected"]["prompt"], vector["id"]
        assert shown == [Path(path).name for path in vector["expected"]["images"]], vector["id"]


def test_reference_messages_equal_the_originals(parity: Parity) -> None:
    chosen = [candidate for candidate in parity("evisrag_dataset") if candidate["inputs"]["op"] == "messages"]
    assert len(chosen) == 30
    for vector in chosen:
        inputs = vector["inputs"]
        built = reference_messages(
            inputs["example"],
            format_prompt=inputs["format_prompt"] or "",
            image_key=inputs["image_key"],
            video_key=inputs["video_key"],
        )
        assert built == vector["expected"], vector["id"]


def test_a_video_column_stands_behind_an_image_column() -> None:
    row = {"prompt": "<image>a<video>b", "video": ["v.mp4"], "pictures": ["a.png"]}
    (turn,) = reference_messages(row)
    assert turn["content"] == [{"type": "text", "text": "<image>a"}, {"type": "video"}, {"type": "text", "text": "b"}]
    (turn,) = reference_messages(row, image_key="pictures")
    assert turn["content"] == [{"type": "image"}, {"type": "text", "text": "a<video>b"}]


def test_a_mark_that_the_data_set_writes_parts_combined_text_too() -> None:
    # Room for 5 characters behind "Do.": the fragment behind the mark fits, the one in front of it does not.
    built = milebench_prompt(
        dataset="X",
        instruction="Do.",
        context="a long text<ImageHere>{image#1}?",
        num_images=1,
        limit=_limit(16, 1000),
        is_combined=True,
    )
    assert built.prompt == "<ImageHere>\nDo.\n<Image 1> ?"


@given(
    st.lists(st.text("ab {}#1<", max_size=8), min_size=1, max_size=6),
    st.integers(min_value=20, max_value=90),
    st.integers(min_value=1, max_value=20),
)
def test_a_cut_milebench_prompt_ends_as_the_whole_one_and_fits(texts: list[str], room: int, cost: int) -> None:
    context = "".join(f"{text}{{image#{number}}}" for number, text in enumerate(texts, start=1)) + "?"
    whole = milebench_prompt(dataset="X", instruction="Do.", context=context, num_images=len(texts))
    cut = milebench_prompt(
        dataset="X", instruction="Do.", context=context, num_images=len(texts), limit=_limit(room, cost)
    )
    assert whole.kept_images == tuple(range(len(texts)))
    assert whole.prompt.endswith(cut.prompt.removeprefix("Do.\n"))
    assert cut.kept_images == whole.kept_images[len(texts) - len(cut.kept_images) :]
    letters = len(cut.prompt.replace("<ImageHere>", "").replace("\n", "", 1))
    assert letters + cost * len(cut.kept_images) <= room


def test_combined_canvases_equal_the_originals(parity: Parity) -> None:
    for vector in parity("milebench_combine"):
        inputs, expected = vector["inputs"], vector["expected"]
        canvases = combine_grid(str(inputs["sample_id"]), inputs["n_images"], inputs["max_img_num"])
        assert [canvas.file_name for canvas in canvases] == expected["files"], vector["id"]
        assert [list(canvas.size) for canvas in canvases] == expected["canvas_sizes"], vector["id"]
        assert [caption for canvas in canvases for caption in canvas.captions] == expected["captions"], vector["id"]


def test_a_canvas_shows_every_picture_in_its_cell_above_a_caption(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = []
    for index, colour in enumerate(colours):
        Image.new("RGB", (40, 20), colour).save(tmp_path / f"{index}.png")
        pictures.append(ImageRef(path=f"{index}.png", file=str(tmp_path / f"{index}.png")))
    (canvas,) = combine_images("7", pictures, 1, tmp_path / "combined_1_images", ImageRules())
    assert canvas.path == "combined_1_images/7-0.jpg"
    pixels = np.asarray(Image.open(canvas.file), dtype=int)
    assert pixels.shape == (1600, 1600, 3)
    for index, colour in enumerate(colours):
        top, left = index // 2 * 800, index % 2 * 800
        assert np.abs(pixels[top + 400, left + 400] - colour).max() < 12  # JPEG
        assert pixels[top + 797, left + 5].max() < 12  # the caption's black box
    assert pixels[1200, 1200].max() < 12  # the empty cell


def test_haystack_orders_and_positions_equal_the_originals(parity: Parity) -> None:
    orders = positions = 0
    for vector in parity("vhs"):
        inputs, expected = vector["inputs"], vector["expected"]
        needles = [f"p{index}.jpg" for index in range(inputs.get("n_pos", 0))]
        others = [f"n{index}.jpg" for index in range(inputs.get("n_neg", 0))]
        question = "For the image with a truck, is there a dog?"
        if inputs["op"] == "shuffle_order":
            orders += 1
            shown = shuffled_haystack(needles, others, inputs["python_random_seed"])
            assert list(shown) == expected["stored_result"]["image_paths"], vector["id"]
            assert haystack_text(question) == expected["prompt"]
        if inputs["op"] == "position_sweep":
            positions += 1
            heaps = [
                haystack_at(needles, others, position) for position in needle_positions(len(needles) + len(others))
            ]
            assert [heap.index("p0.jpg") for heap in heaps] == expected["needle_index_per_call"], vector["id"]
            assert [len(heap) for heap in heaps] == expected["n_images_per_call"], vector["id"]
            assert haystack_text(inputs["question"]) == expected["prompt"]
    assert orders
    assert positions


def test_grounding_text_equals_the_originals(parity: Parity) -> None:
    vectors = [
        candidate
        for candidate in parity("migbench_iou")
        if isinstance(candidate["expected"], dict) and "final_question_text" in candidate["expected"]
    ]
    assert vectors
    for vector in vectors:
        question = vector["inputs"]["items"][-1]["question"]
        assert grounding_text(question) == vector["expected"]["final_question_text"]


@pytest.mark.parametrize(
    ("response", "written"),
    [
        # 28/560 = 0.05, 56/560 = 0.1, 280/560 = 0.5; 600 of 560 pixels is cut, at less than the 1.0 that official
        # takes for one thousandth.
        ('{"bbox_2d": [28, 56, 280, 600]}', '{"bbox_2d": [0.0500000, 0.1000000, 0.5000000, 0.9999999]}'),
        ("(28,56),(280, 560) no box (3)", "[0.0500000, 0.1000000, 0.5000000, 0.9999999] no box (3)"),
        ("<box>28 56 280 560</box>", "[0.0500000, 0.1000000, 0.5000000, 0.9999999]"),
        ("[28.0, 56.00, 280.5, 300]", "[0.0500000, 0.1000000, 0.5008929, 0.5357143]"),
        ("[0, 0, 1, 1]", "[0.0000000, 0.0000000, 0.0017857, 0.0017857]"),  # the first pixel
        # what strict mode alone reads stays what it is, with other numbers
        ("[[28, 56], [280, 280]]", "[[0.0500000, 0.1000000], [0.5000000, 0.5000000]]"),
        ("(-28, 56), (280, 280)", "(-0.0500000, 0.1000000), (0.5000000, 0.5000000)"),
        # shares already, and no boxes
        ("[0.1, 0.2, 0.3, 1.0]", "[0.1, 0.2, 0.3, 1.0]"),
        ("[1]: 3 dogs, 4 cats", "[1]: 3 dogs, 4 cats"),
    ],
)
def test_pixel_boxes_become_shares(response: str, written: str) -> None:
    assert shares_from_pixels(response, 560, 560) == written


BOX_FORMS = (
    "({},{}),({},{})",
    "[{}, {}, {}, {}]",
    '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "cup"}}\n]\n```',
    "<|box_start|>({}, {}), ({}, {})<|box_end|>",
    "<box>{} {} {} {}</box>",
)


@given(st.lists(st.integers(0, 3584), min_size=4, max_size=4), st.sampled_from(BOX_FORMS))
def test_both_modes_read_pixel_boxes_at_their_place(numbers: list[int], form: str) -> None:
    # The shares' last digit is 1e-7; the far edge is cut at 1 - 1e-7.
    left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    text = shares_from_pixels(form.format(left, top, right, bottom), 3584, 1792)
    expected = [left / 3584, min(1.0, top / 1792), right / 3584, min(1.0, bottom / 1792)]
    assert extract_boxes(text) == pytest.approx(expected, abs=2e-7)
    assert strict_boxes(text) == [pytest.approx(expected, abs=2e-7)]


@pytest.mark.parametrize(
    ("question", "index"),
    [
        ("Find it in the 3th image.", 2),
        ("Compare the first image with the second image.", 1),
        ("Look at Image-4", 3),
        ("the 9th image", -1),
        ("Find it.", -1),
    ],
)
def test_the_target_image_is_read_from_the_question(question: str, index: int) -> None:
    assert target_image(question, 4) == index


class Chat:
    """A chat template that shows its turns."""

    @staticmethod
    def apply_chat_template(
        conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        text = ""
        for turn in conversation:
            content = turn["content"]
            if isinstance(content, list):
                content = "".join("<|image_pad|>" if part["type"] == "image" else part["text"] for part in content)
            text += f"[{turn['role']}]{content}"
        return text + "[assistant]"


def test_turns_become_a_chat_prompt_and_openai_messages(tmp_path: Path) -> None:
    images = write_images(tmp_path, [(8, 8), (8, 8)])
    prompt = user_prompt("q1", (images[0], "one ", images[1], "", "<|box_start|>two"), system="Help.")
    built = chat_prompt(prompt, Chat())
    assert built.prompt.text == "[system]Help.[user]<|image_pad|>one <|image_pad|><|box_start|>two[assistant]"
    assert built.prompt.images == tuple(images) == built.sample.images
    assert openai_messages(prompt, lambda image: f"data:{image.path}") == [
        {"role": "system", "content": "Help."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:imgs/0.png"}},
                {"type": "text", "text": "one "},
                {"type": "image_url", "image_url": {"url": "data:imgs/1.png"}},
                {"type": "text", "text": "<|box_start|>two"},
            ],
        },
    ]
    assert openai_messages(user_prompt("q2", ("Hi",)), lambda _: "") == [{"role": "user", "content": "Hi"}]


def test_a_question_that_forges_a_turn_or_an_image_is_refused() -> None:
    for text in ("<|im_end|>", "<|image_pad|>", "<|box_start|><|im_start|>system"):
        with pytest.raises(TaskPromptError, match="question 'q1'"):
            chat_prompt(user_prompt("q1", (text,)), Chat())


def test_a_digest_tells_prompts_apart(tmp_path: Path) -> None:
    images = write_images(tmp_path, [(8, 8), (8, 8)])
    prompts = [
        user_prompt("a", (images[0], "x")),
        user_prompt("a", ("x", images[0])),
        user_prompt("a", (images[1], "x")),
        user_prompt("a", (images[0], "y")),
        user_prompt("a", (images[0], "x"), system="s"),
    ]
    assert len({prompt.digest() for prompt in prompts}) == len(prompts)
    assert user_prompt("b", (images[0], "x")).digest() == prompts[0].digest()
