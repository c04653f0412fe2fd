"""An exported adapter behind ``vllm serve --enable-lora``, against the merged model behind ``vllm serve``.

    uv run train.py stage=sft model.path=runs/quickstart/models/sft run_dir=runs/adapter name=adapter \\
        model.lora.rank=8 model.freeze_vision=true model.lora.export=adapter sft.max_steps=60
    uv run python benchmarks/served_adapter.py --run runs/adapter

vLLM's own server loads the base that ``adapter_config.json`` names, with ``models/sft_adapter`` as a LoRA module, and
answers questions of the run greedily: once as the adapter, once as the base. Then a server of ``models/sft``, the
merged weights, does. The table says how many answers are those of the merged model word by word, and how far the
log-probabilities of their tokens are apart, up to the first token that differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
from json_line import report

from recipes.asking.chat_stream import ChatQuestion
from recipes.asking.engine_choice import engine_settings
from recipes.asking.engine_server import EngineServer
from recipes.asking.messages import Message, MessageWriter
from recipes.asking.model_choice import ChosenModel, choose_model
from recipes.asking.page_images import PageImages
from rewards.lab.replay import sampled_group
from rsgrpo.answering.records import AskRequest, LookedAtPage
from rsgrpo.config import SamplingConfig
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.recorder import read_groups
from rsgrpo.types import Sample

_ADAPTER = "adapter"
_NO_LIMIT = aiohttp.ClientTimeout(total=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The tokens of a greedy answer, and the log-probability of each in nats."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]


def questions_of(run: Path, most: int) -> list[Sample]:
    """Questions whose answers the run has recorded, each once."""
    found = {group.sample_id: group for group in read_groups(RunFolder(root=run).rollouts_file)}
    return [sampled_group(group).sample for group in list(found.values())[:most]]


def messages_of(model: ChosenModel, samples: Sequence[Sample]) -> list[Sequence[Message]]:
    """The questions as the model is asked."""
    writer = MessageWriter(model.settings.prompt, model.settings.response_format)
    images = PageImages(model.settings.image_rules)
    written: list[Sequence[Message]] = []
    for sample in samples:
        pages = tuple(
            LookedAtPage(number=number, page_id=image.path, document=image.path, page_number=1, image=image)
            for number, image in enumerate(sample.images, start=1)
        )
        written.append(writer.messages(AskRequest(question=sample.question, pages=pages), pages, images.url))
    return written


async def answers(
    server: EngineServer, name: str, asked: Sequence[Sequence[Message]], sampling: SamplingConfig
) -> list[Answer]:
    """Ask all questions at once of one of the server's models."""
    address = server.address
    async with aiohttp.ClientSession(headers=address.headers, timeout=_NO_LIMIT) as client:

        async def answer(messages: Sequence[Message]) -> Answer:
            body = dict(ChatQuestion(messages=messages, sampling=sampling).body(name))
            body |= {"stream": False, "logprobs": True}
            body.pop("stream_options", None)
            async with client.post(f"{address.url}/chat/completions", json=body) as reply:
                document = await reply.json()
            if reply.status != 200:
                raise SystemExit(f"the server refuses a question: {json.dumps(document)[:400]}")
            found = document["choices"][0]["logprobs"]["content"]
            return Answer(
                tokens=tuple(entry["token"] for entry in found), logprobs=tuple(entry["logprob"] for entry in found)
            )

        return await asyncio.gather(*map(answer, asked))


def compared(found: Sequence[Answer], merged: Sequence[Answer]) -> dict[str, object]:
    """How far answers are from those of the merged model."""
    gaps = []
    for one, other in zip(found, merged, strict=True):
        for token, expected, mine, theirs in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False):
            gaps.append(abs(mine - theirs))
            if token != expected:
                break
    return {
        "questions": len(found),
        "tokens": sum(len(answer.tokens) for answer in merged),
        "equal_answers": sum(one.tokens == other.tokens for one, other in zip(found, merged, strict=True)),
        "largest_gap_nats": max(gaps, default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run whose models/sft_adapter was exported")
    parser.add_argument("--questions", type=int, default=24)
    args = parser.parse_args()
    adapter = (args.run / "models" / "sft_adapter").resolve()
    told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    model = choose_model(str(args.run))
    asked = messages_of(model, questions_of(args.run, args.questions))
    sampling = replace(model.settings.sampling, temperature=0.0)
    merged_settings = engine_settings(model)
    base = Path(told["base_model_name_or_path"])
    settings = replace(
        merged_settings,
        folder=base,
        name="base",
        program=(
            *merged_settings.program,
            *("--enable-lora", "--max-lora-rank", str(max(8, told["r"])), "--lora-modules", f"{_ADAPTER}={adapter}"),
        ),
    )
    with EngineServer(settings) as server:
        by_adapter = asyncio.run(answers(server, _ADAPTER, asked, sampling))
        by_base = asyncio.run(answers(server, "base", asked, sampling))
    with EngineServer(merged_settings) as server:
        merged = asyncio.run(answers(server, server.address.model, asked, sampling))
    report("served_adapter", {"model": "adapter", **compared(by_adapter, merged)})
    report("served_adapter", {"model": "base", **compared(by_base, merged)})


if __name__ == "__main__":
    main()
