"""The endpoint client against a real HTTP server that refuses, stalls, breaks off and talks nonsense."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.evaluation.answering import Answer
from recipes.evaluation.endpoint import EndpointAnswerer, EndpointError
from rsgrpo.config import ConfigError, DataConfig, EndpointConfig, SamplingConfig
from rsgrpo.evaluation.prompts.turns import TaskPrompt, user_prompt
from tests.fake_server import FakeServer, Reply, ok
from tests.tiny_model import write_images

GREEDY = SamplingConfig(temperature=0.0, max_response_tokens=16)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


def _answer(server: FakeServer, prompts: list[TaskPrompt], **settings: Any) -> dict[str, Answer]:
    settings = {"timeout_seconds": 5.0, "retries": 3, "backoff_seconds": 0.01, "concurrency": 3, **settings}
    answers: list[Answer] = []
    endpoint = EndpointConfig(url=server.url, model="m", **settings)
    EndpointAnswerer(endpoint, DataConfig(), seed=7).answer(prompts, GREEDY, answers.extend)
    assert len({answer.prompt_id for answer in answers}) == len(answers)
    return {answer.prompt_id: answer for answer in answers}


def _prompts(*prompts: str) -> list[TaskPrompt]:
    return [user_prompt(question, (question,)) for question in prompts]


def test_every_question_is_answered_by_so_many_requests_at_a_time(server: FakeServer) -> None:
    def slowly(question: str, _: int) -> Reply:
        time.sleep(0.05)
        return ok(f"re: {question}", "length" if question == "q0" else "stop")

    server.reply = slowly
    answers = _answer(server, _prompts(*(f"q{index}" for index in range(9))))
    assert {answer.prompt_id: answer.text for answer in answers.values()} == {f"q{i}": f"re: q{i}" for i in range(9)}
    assert answers["q0"].finish_reason == "length"
    assert not any(answer.failure for answer in answers.values())
    assert server.most_in_flight == 3


def test_a_request_carries_settings_key_and_images(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    (image,) = write_images(tmp_path, [(60, 40)])
    prompt = user_prompt("a", ("Look: ", image, "What?"), system="Help.")
    assert _answer(server, [prompt], api_key_variable="SOME_KEY")["a"].text == "re: Look: What?"
    (body,), (headers,) = server.bodies, server.headers
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 16,
        "seed": 7,
    }
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer secret"
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Help."}
    kind, data = user["content"][1]["image_url"]["url"].split(",", 1)
    assert kind == "data:image/png;base64"
    # 60 × 40 = 2400 pixels, below data.min_pixels = 3136: scaled by sqrt(3136 / 2400) = 1.1431.
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (68, 45)


@pytest.mark.parametrize(
    "first",
    [
        (429, '{"error": "slow down"}', {"retry-after": "0.02"}),
        (500, "oops", {}),
        (503, "", {}),
        (200, '{"choices": [{"message": {"content": "cut he', {}),
        (200, "[]", {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"message": {"content": null}}]}', {}),
        (200, '{"choices": ' + "[" * 100_000 + "]" * 100_000 + "}", {}),
        (200, "not packed", {"content-encoding": "gzip"}),
        (503, "later", {"retry-after": "²"}),
        (500, "oops", {"content-type": "text/html; charset=base64"}),
    ],
    ids=["429", "500", "503", "half-json", "list", "no-choice", "null", "deep", "gzip", "odd-wait", "odd-charset"],
)
def test_failures_that_may_pass_are_retried(server: FakeServer, first: Reply) -> None:
    server.reply = lambda question, attempt: first if attempt <= 2 else ok("at last")
    assert _answer(server, _prompts("q"))["q"] == Answer(prompt_id="q", text="at last", finish_reason="stop")
    assert server.attempts["q"] == 3


def test_a_server_is_waited_for_as_long_as_it_asks(server: FakeServer) -> None:
    server.reply = lambda question, attempt: (429, "", {"retry-after": "0.3"}) if attempt == 1 else ok("yes")
    begin = time.perf_counter()
    assert _answer(server, _prompts("q"))["q"].text == "yes"
    assert time.perf_counter() - begin >= 0.3


def test_lasting_failures_are_named_and_the_other_prompts_are_answered(server: FakeServer) -> None:
    is_over = threading.Event()

    def reply(question: str, _: int) -> Reply:
        if question == "stalls":
            is_over.wait(60)
        replies: dict[str, Reply] = {
            "busy": (429, "wait", {}),
            "long": (400, "prompt is too long", {}),
            "odd": (200, "<html>", {}),
        }
        return replies.get(question, ok("fine"))

    server.reply = reply
    answers = _answer(server, _prompts("busy", "long", "odd", "stalls", "good"), timeout_seconds=2.0, retries=1)
    is_over.set()
    assert answers["good"].text == "fine"
    failures = {name: answer.failure for name, answer in answers.items() if answer.failure}
    assert failures.keys() == {"busy", "long", "odd", "stalls"}
    assert failures["busy"] == "status 429: wait (2 attempts)"
    assert failures["long"] == "status 400: prompt is too long"
    assert server.attempts["long"] == 1  # the same prompt would be refused again
    assert "no chat completion" in failures["odd"]
    assert "eval.endpoint.timeout_seconds=2" in failures["stalls"]
    assert server.attempts["stalls"] == 2
    assert not any(answers[name].text for name in failures)


def test_a_wrong_key_or_model_stops_at_once(server: FakeServer) -> None:
    for status, hint in ((401, "api_key_variable"), (403, "model"), (404, "ends in /v1")):
        server.reply = lambda question, attempt, status=status: (status, "no", {})  # type: ignore[misc]
        server.attempts.clear()
        with pytest.raises(EndpointError, match=hint):
            _answer(server, _prompts(*(f"q{index}" for index in range(20))))
        assert sum(server.attempts.values()) <= 6  # those on their way, and hardly one more


def test_a_dead_server_is_given_up(server: FakeServer) -> None:
    server.close()
    answers: list[Answer] = []
    endpoint = EndpointConfig(url=server.url, model="m", retries=1, backoff_seconds=0.0, concurrency=2, give_up_after=4)
    with pytest.raises(EndpointError, match=r"4 questions in a row failed.*resume=auto"):
        EndpointAnswerer(endpoint, DataConfig(), 0).answer(
            _prompts(*(f"q{index}" for index in range(50))), GREEDY, answers.extend
        )
    assert 4 <= len(answers) <= 6
    assert all("ConnectError" in answer.failure for answer in answers)


def test_a_missing_key_is_found_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    endpoint = EndpointConfig(url="http://localhost:1/v1", model="m", api_key_variable="NO_SUCH_KEY")
    with pytest.raises(EndpointError, match="NO_SUCH_KEY"):
        EndpointAnswerer(endpoint, DataConfig(), 0)


def test_an_interrupt_keeps_what_is_done(server: FakeServer) -> None:
    answers: list[Answer] = []

    def keep(more: list[Answer]) -> None:
        answers.extend(more)
        if len(answers) == 3:
            raise KeyboardInterrupt

    endpoint = EndpointConfig(url=server.url, model="m", concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        EndpointAnswerer(endpoint, DataConfig(), 0).answer(_prompts("a", "b", "c", "d"), GREEDY, keep)  # type: ignore[arg-type]
    assert [answer.prompt_id for answer in answers] == ["a", "b", "c"]
    assert server.attempts["d"] == 0


def test_a_redirect_stops_at_once_and_says_where_to(server: FakeServer) -> None:
    server.reply = lambda *_: (307, "", {"location": "https://elsewhere/v1/chat/completions"})
    with pytest.raises(EndpointError, match=r"leads on to 'https://elsewhere/v1/chat/completions' \(status 307\)"):
        _answer(server, _prompts("q"))
    assert server.attempts["q"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///v1",
        "http://a b/v1",
        "http://host:abc/v1",
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://host/v1?key=1",
    ],
)
def test_an_address_that_nothing_can_reach_is_refused_with_the_settings(url: str) -> None:
    with pytest.raises(ConfigError, match=r"eval\.endpoint\.url="):
        EndpointConfig(url=url, model="m")
