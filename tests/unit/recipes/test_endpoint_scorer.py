"""A server's log-probabilities of yes and no as probabilities, and what is refused."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.evaluation.endpoint import EndpointError
from recipes.filtering.endpoint_scorer import EndpointYesNoScorer, read_logprobs
from rsgrpo.config import DataConfig, EndpointConfig
from rsgrpo.types import ImageRef
from tests.fake_server import FakeServer, Reply


def reply(likeliest: dict[str, float] | None, prompt_tokens: int = 50) -> dict[str, Any]:
    top = [{"token": token, "logprob": logprob} for token, logprob in (likeliest or {}).items()]
    logprobs = {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": top}]} if likeliest else None
    choice = {"message": {"content": "yes"}, "finish_reason": "length", "logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": prompt_tokens}}


def _always(answer: Reply, question: str, attempt: int) -> Reply:
    return answer


@pytest.fixture
def server():
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def pages(tmp_path: Path) -> list[ImageRef]:
    Image.new("RGB", (112, 84)).save(tmp_path / "a.png")
    return [ImageRef(path="a.png", file=str(tmp_path / "a.png"))] * 2


def scorer(server: FakeServer) -> EndpointYesNoScorer:
    endpoint = EndpointConfig(url=server.url, model="m", retries=0, processor_min_pixels=784)
    return EndpointYesNoScorer(
        endpoint, DataConfig(), lambda question: f"ask: {question}", ("yes", "no"), max_pixels=3136
    )


def test_the_probability_is_that_of_yes_against_no(server: FakeServer, pages) -> None:
    # 0.6 against 0.2: 0.75.
    likeliest = {"yes": math.log(0.6), "no": math.log(0.2), "maybe": math.log(0.1)}
    server.reply = partial(_always, (200, json.dumps(reply(likeliest)), {}))
    found = scorer(server)
    assert found.score("Who?", pages).tolist() == pytest.approx([0.75, 0.75])
    body = server.bodies[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0.0)
    content = body["messages"][-1]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]  # the page first
    assert content[1]["text"] == "ask: Who?"


def test_an_answer_that_is_not_listed_is_at_most_as_likely_as_the_last_that_is() -> None:
    text, _ = read_logprobs(reply({"yes": -0.1, "a": -3.0, "b": -5.0}), ("yes", "no"))
    assert json.loads(text) == {"yes": -0.1, "no": -5.0, "prompt_tokens": 50}


def test_a_server_without_logprobs_or_with_other_words_is_refused(server: FakeServer, pages) -> None:
    for likeliest, words in ((None, "gives no logprobs"), ({"ja": -0.1}, "neither 'yes' nor 'no' is among")):
        server.reply = partial(_always, (200, json.dumps(reply(likeliest)), {}))
        with pytest.raises(EndpointError, match=words):
            scorer(server).score("Who?", pages)
