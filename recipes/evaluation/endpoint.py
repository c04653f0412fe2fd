"""A client of OpenAI-compatible chat servers: bounded concurrency, retries that wait, failures by name.

    429, 5xx, 408, time-outs, broken connections, unreadable replies -> wait, try again, then a failed answer
    401, 403, 404                                                   -> nothing will ever work: stop
    other 4xx (a prompt that is too long, say)                       -> a failed answer at once

A failed answer carries its reason and no text; whoever scores counts it, it is never taken for a wrong answer.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from recipes.evaluation.answering import Answer
from rsgrpo.config import DataConfig, EndpointConfig, SamplingConfig
from rsgrpo.data.images.loading import load_image
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.prompts.turns import TaskPrompt, openai_messages
from rsgrpo.types import ImageRef

_RETRIED = frozenset({408, 409, 425, 429})
_HOPELESS = {
    401: "the key is missing or wrong: set eval.endpoint.api_key_variable to the environment variable that holds it",
    403: "the key may not use this model: check the key and eval.endpoint.model",
    404: "no such address or model: check eval.endpoint.url (it ends in /v1 as a rule) and eval.endpoint.model",
}
_MAX_WAIT_SECONDS = 60.0
_SHOWN_CHARACTERS = 200


class EndpointError(RsgrpoError):
    """A server cannot be used; the message says why and what to do."""


class _AttemptError(Exception):
    """One attempt to get an answer failed."""

    def __init__(self, reason: str, *, may_retry: bool, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.may_retry = may_retry
        self.wait_seconds = wait_seconds


class EndpointAnswerer:
    """Answers through a server; see :class:`recipes.evaluation.answering.Answerer`.

    Args:
        endpoint: address, model, limits.
        data: how images are read, and the size that they are brought to before they are sent.
        seed: sent with every request.
        extra: what is sent along with every request beside what is sent always.
        read: reads text and finish reason off a reply; None: those of a chat completion.
        wants_logprobs: whether answers come with their mean log-probability, which not every server gives.
        key: the key of the server; empty: the one that ``eval.endpoint.api_key_variable`` names.

    Raises:
        EndpointError: ``eval.endpoint.api_key_variable`` names an environment variable that is not set.

    Example:
        >>> answerer = EndpointAnswerer(EndpointConfig(url="http://localhost:8000/v1", model="m"), DataConfig(), 0)
        >>> answerer.answer(prompts, SamplingConfig(temperature=0.0), on_answers=kept.extend)
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        data: DataConfig,
        seed: int,
        *,
        extra: Mapping[str, object] | None = None,
        read: Callable[[Any], tuple[str, str]] | None = None,
        wants_logprobs: bool = False,
        key: str = "",
    ) -> None:
        self._extra = {**(extra or {}), **({"logprobs": True} if wants_logprobs else {})}
        self._wants_logprobs = wants_logprobs
        self._read = read or _completion
        self._endpoint = endpoint
        self._rules = data.image_rules
        self._seed = seed
        self._headers: dict[str, str] = {}
        self._num_failed_in_a_row = 0
        # Spreads retries, so that requests refused together do not come back together.
        self._jitter = random.Random(seed)
        if endpoint.api_key_variable and not key:
            key = os.environ.get(endpoint.api_key_variable, "")
            if not key:
                raise EndpointError(
                    f"eval.endpoint.api_key_variable={endpoint.api_key_variable} names an environment variable that is "
                    "not set; export it, or leave the setting empty for a server without keys"
                )
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def answer(
        self, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, on_answers: Callable[[Sequence[Answer]], None]
    ) -> None:
        """Ask everything, ``concurrency`` requests at a time.

        Args:
            prompts: the prompts to answer, with unique ids.
            sampling: settings that differ from a server's defaults are sent along.
            on_answers: is called in this thread with each answer, failed ones included.

        Raises:
            EndpointError: the server refuses requests for good, or ``give_up_after`` questions failed in a row.
            KeyboardInterrupt: the user pressed Ctrl-C: requests on their way are dropped; all answers so far were
                handed over.
        """
        asyncio.run(self._answer_all(prompts, sampling, on_answers))

    async def _answer_all(
        self, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, on_answers: Callable[[Sequence[Answer]], None]
    ) -> None:
        waiting = iter(prompts)
        self._num_failed_in_a_row = 0
        limits = httpx.Limits(max_connections=self._endpoint.concurrency)
        async with httpx.AsyncClient(
            headers=self._headers, timeout=self._endpoint.timeout_seconds, limits=limits
        ) as client:
            workers = [
                asyncio.create_task(self._work(client, waiting, sampling, on_answers))
                for _ in range(min(self._endpoint.concurrency, len(prompts)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(
        self,
        client: httpx.AsyncClient,
        waiting: Iterator[TaskPrompt],
        sampling: SamplingConfig,
        on_answers: Callable[[Sequence[Answer]], None],
    ) -> None:
        for prompt in waiting:
            answer = await self._ask(client, prompt, sampling)
            on_answers([answer])
            self._num_failed_in_a_row = self._num_failed_in_a_row + 1 if answer.failure else 0
            if self._num_failed_in_a_row >= self._endpoint.give_up_after:
                raise EndpointError(
                    f"{self._num_failed_in_a_row} questions in a row failed at eval.endpoint.url="
                    f"{self._endpoint.url!r}, the last one with: {answer.failure}; see that the server is up, then go "
                    "on with resume=auto (answers so far are kept)"
                )

    async def _ask(self, client: httpx.AsyncClient, prompt: TaskPrompt, sampling: SamplingConfig) -> Answer:
        # Pages are decoded and packed off the event loop, and only for requests whose turn it is.
        body = await asyncio.to_thread(self._body, prompt, sampling)
        for attempt in range(self._endpoint.retries + 1):
            try:
                text, finish_reason, mean_logprob = await self._attempt(client, body)
            except _AttemptError as error:
                if not error.may_retry or attempt == self._endpoint.retries:
                    tries = f" ({attempt + 1} attempts)" if attempt else ""
                    return Answer(prompt_id=prompt.prompt_id, failure=f"{error}{tries}")
                await asyncio.sleep(self._wait_seconds(attempt, error.wait_seconds))
            else:
                return Answer(
                    prompt_id=prompt.prompt_id, text=text, finish_reason=finish_reason, mean_logprob=mean_logprob
                )
        raise AssertionError("the last attempt returns")

    def _wait_seconds(self, attempt: int, asked: float | None) -> float:
        if asked is not None:
            return min(asked, _MAX_WAIT_SECONDS)
        longest = min(self._endpoint.backoff_seconds * 2.0**attempt, _MAX_WAIT_SECONDS)
        return longest * self._jitter.uniform(0.5, 1.0)

    def _body(self, prompt: TaskPrompt, sampling: SamplingConfig) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._endpoint.model,
            "messages": openai_messages(prompt, self._image_url),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_response_tokens,
            "seed": self._seed,
            **self._extra,
        }
        # Not every server knows these: they are left out where they say nothing.
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k != -1:
            body["top_k"] = sampling.top_k
        if sampling.repetition_penalty != 1.0:
            body["repetition_penalty"] = sampling.repetition_penalty
        return body

    def _image_url(self, image: ImageRef) -> str:
        loaded = load_image(image, self._rules)
        buffer = io.BytesIO()
        loaded.save(buffer, format="PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    async def _attempt(self, client: httpx.AsyncClient, body: dict[str, object]) -> tuple[str, str, float | None]:
        """Text, finish reason and, where it is wanted, mean log-probability of one attempt."""
        url = self._endpoint.url.rstrip("/") + "/chat/completions"
        try:
            # httpx counts silence between bytes; a server that drips would hold a request for ever.
            async with asyncio.timeout(self._endpoint.timeout_seconds):
                response = await client.post(url, json=body)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise _AttemptError(
                f"no reply within eval.endpoint.timeout_seconds={self._endpoint.timeout_seconds:g}", may_retry=True
            ) from error
        except httpx.RequestError as error:  # no connection, a broken one, or a body that cannot be unpacked
            raise _AttemptError(f"{type(error).__name__}: {error}", may_retry=True) from error
        status = response.status_code
        if response.has_redirect_location:
            raise EndpointError(
                f"{url} leads on to {shown(response.headers['location'], _SHOWN_CHARACTERS)!r} (status {status}); set "
                "eval.endpoint.url to the address that answers itself"
            )
        if status in _HOPELESS:
            raise EndpointError(f"{url} answers {status} ({_shown(response)}); {_HOPELESS[status]}")
        if status != httpx.codes.OK:
            raise _AttemptError(
                f"status {status}: {_shown(response)}",
                may_retry=status in _RETRIED or status >= httpx.codes.INTERNAL_SERVER_ERROR,
                wait_seconds=_retry_after(response),
            )
        try:
            reply = response.json()
            return *self._read(reply), _mean_logprob(reply) if self._wants_logprobs else None
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise _AttemptError(
                f"a reply that is no chat completion ({type(error).__name__}: {error}): {_shown(response)}",
                may_retry=True,
            ) from error


def _completion(reply: Any) -> tuple[str, str]:
    """Text and finish reason of a chat completion.

    Raises:
        LookupError: a key is missing in the reply.
        TypeError: a value of the reply has a wrong type.
    """
    choice = reply["choices"][0]
    content = choice["message"]["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str):
        raise TypeError(f"the message's content is {type(content).__name__}, expected text")
    return content, str(choice.get("finish_reason") or "")


def _mean_logprob(reply: Any) -> float:
    """Mean log-probability of a chat completion's tokens.

    Raises:
        LookupError: a key is missing in the reply.
        TypeError: a value of the reply has a wrong type.
        ValueError: the reply has no log-probabilities.
    """
    content = (reply["choices"][0].get("logprobs") or {}).get("content") or []
    if not content:
        raise ValueError("the server gives no logprobs, by which an answer is chosen")
    return math.fsum(float(token["logprob"]) for token in content) / len(content)


def _retry_after(response: httpx.Response) -> float | None:
    """How many seconds the server asks to wait; None where it does not say (or gives a date)."""
    value = response.headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value) else None


def _shown(response: httpx.Response) -> str:
    # The server's word for its encoding may name one that is no text.
    text = " ".join(response.content.decode(errors="replace").split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
