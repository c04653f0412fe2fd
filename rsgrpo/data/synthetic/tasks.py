"""The three generated tasks as data sets on the disk.

Each question is drawn by its own number, so that a data set of 100 questions begins with those of one of 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rsgrpo.data.evisrag_files import write_evisrag
from rsgrpo.data.synthetic.shapes import COLOURS, FORMS, KINDS, Shape, draw, place
from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.types import Box, ImageRef, Sample

_SPLITS = ("train", "test")
_WORDS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
MAX_PAGES = len(_WORDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """A question, its gold, and its pages."""

    question: str
    answer: str
    gold_response: str
    image_shapes: tuple[tuple[Shape, ...], ...]
    positive_images: tuple[int, ...]
    boxes: tuple[Box, ...] = ()
    choices: tuple[str, ...] = ()


def write_task(
    task: str, folder: Path, *, num_train: int, num_test: int, num_images: int, image_pixels: int, seed: int
) -> None:
    """Write ``train.jsonl`` and ``test.jsonl`` with their pages beside them.

    Args:
        task: ``grounding`` (find one shape on several pages, answer with its box), ``haystack`` (which page holds
            one shape, and does it hold another: yes or no) or ``choice`` (pick the colour of a form).
        folder: the folder to write.
        num_train: how many questions there are to train on.
        num_test: how many questions are held out.
        num_images: how many images a question has, 2 to 8.
        image_pixels: the side of a square image, in pixels.
        seed: the seed that everything is drawn from.

    Raises:
        ValueError: ``task`` is not known, or ``num_images`` is out of range.
    """
    if task not in _MAKERS:
        raise ValueError(f"task={task!r} is not known; choose one of {', '.join(_MAKERS)}")
    if not 2 <= num_images <= MAX_PAGES:
        raise ValueError(f"num_images={num_images} must lie between 2 and {MAX_PAGES}")
    for split_index, (split, count) in enumerate(zip(_SPLITS, (num_train, num_test), strict=True)):
        samples: list[Sample] = []
        images: dict[str, Image.Image] = {}
        for index in range(count):
            rng = np.random.default_rng((seed, list(_MAKERS).index(task), split_index, index))
            drawn = _MAKERS[task](num_images, image_pixels, rng)
            paths = [f"imgs/{split}-{index:05d}-{number}.png" for number in range(1, num_images + 1)]
            images |= {path: draw(shapes, image_pixels) for path, shapes in zip(paths, drawn.image_shapes, strict=True)}
            samples.append(
                Sample(
                    sample_id=f"{task}-{split}-{index:05d}",
                    question=drawn.question,
                    images=tuple(ImageRef(path=path) for path in paths),
                    answers=(drawn.answer,),
                    gold_response=drawn.gold_response,
                    positive_images=drawn.positive_images,
                    boxes=drawn.boxes,
                    choices=drawn.choices,
                )
            )
        write_evisrag(folder / f"{split}.jsonl", samples, images, layout="test", as_table=False)


def _grounding(num_images: int, image_pixels: int, rng: np.random.Generator) -> _Drawn:
    """Grounding: one shape is looked for, and stands on one page only."""
    wanted = int(rng.integers(len(KINDS)))
    target = int(rng.integers(num_images))
    others = [kind for index, kind in enumerate(KINDS) if index != wanted]
    image_shapes = []
    for number in range(num_images):
        kinds = [others[index] for index in rng.permutation(len(others))[:2]]
        image_shapes.append(place(([KINDS[wanted]] if number == target else []) + kinds, image_pixels, rng))
    shape = image_shapes[target][0]
    box = shape.share(image_pixels, target)
    left, top, right, bottom = (round(1000 * side) for side in (box.left, box.top, box.right, box.bottom))
    written = f"({left},{top}),({right},{bottom})"
    return _Drawn(
        question=f"Find the {shape.name}.",
        answer=written,
        gold_response=f"It is in the {_WORDS[target]} image. {written}",
        image_shapes=tuple(image_shapes),
        positive_images=(target,),
        boxes=(box,),
    )


def _haystack(num_images: int, image_pixels: int, rng: np.random.Generator) -> _Drawn:
    """Haystack: the anchor names the needle page; whether the other shape stands on it is the question."""
    order = [KINDS[index] for index in rng.permutation(len(KINDS))]
    anchor, asked, rest = order[0], order[1], order[2:]
    target, is_there = int(rng.integers(num_images)), bool(rng.integers(2))
    image_shapes = []
    for number in range(num_images):
        fillers = [rest[index] for index in rng.permutation(len(rest))[:2]]
        kinds = [anchor, asked if is_there else fillers[0]] if number == target else fillers
        image_shapes.append(place(kinds, image_pixels, rng))
    names = [shape.name for shape in image_shapes[target]]
    lines = [
        f"[{number + 1}]: " + (f"a {names[0]} and a {names[1]}" if number == target else IRRELEVANT)
        for number in range(num_images)
    ]
    answer = "yes" if is_there else "no"
    return _Drawn(
        question=f"For the image with a {' '.join(anchor)}, is there a {' '.join(asked)}?",
        answer=answer,
        gold_response="<evidence>" + "\n".join(lines) + f"</evidence>\n<answer>{answer}</answer>",
        image_shapes=tuple(image_shapes),
        positive_images=(target,),
    )


def _choice(num_images: int, image_pixels: int, rng: np.random.Generator) -> _Drawn:
    """Choice: one form stands on one page only; its colour is one of the four options."""
    form = FORMS[int(rng.integers(len(FORMS)))]
    colours = list(COLOURS)
    colour = colours[int(rng.integers(len(colours)))]
    target = int(rng.integers(num_images))
    others = [kind for kind in KINDS if kind[1] != form]
    image_shapes = []
    for number in range(num_images):
        fillers = [others[index] for index in rng.permutation(len(others))[:2]]
        image_shapes.append(place(([(colour, form)] if number == target else []) + fillers, image_pixels, rng))
    choices = tuple(colours[index] for index in rng.permutation(len(colours)))
    letter = "ABCD"[choices.index(colour)]
    return _Drawn(
        question=f"Which colour does the {form} have?",
        answer=letter,
        gold_response=f"<think>The {form} in the {_WORDS[target]} image is {colour}.</think><answer>{letter}</answer>",
        image_shapes=tuple(image_shapes),
        positive_images=(target,),
        choices=choices,
    )


_MAKERS: dict[str, Callable[[int, int, np.random.Generator], _Drawn]] = {
    "grounding": _grounding,
    "haystack": _haystack,
    "choice": _choice,
}
TASKS = tuple(_MAKERS)
"""The names of the tasks that can be written."""
