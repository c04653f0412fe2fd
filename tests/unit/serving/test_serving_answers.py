"""Questions: streamed, written down, followed up, taken back; a queue that is fair."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.serving.event_streams import EventStream, server_event
from recipes.serving.fair_queue import FairQueue, QueueBounds, Ticket
from recipes.serving.marks import box_tokens_of, marked_words
from recipes.serving.refusals import RefusedError
from rsgrpo.documents.records import PlacedWord
from rsgrpo.types import Box
from tests.unit.serving.served import Served, serving


def test_an_answer_streams_its_pages_its_sections_and_its_end(served: Served) -> None:
    served.bring()
    found = served.ask("What is the total?", by="text")
    assert list(found) == ["turn", "pages", "text", "answered"]
    (page,) = found["pages"][0]["pages"]  # one page alone has a word of the question
    assert (page["number"], page["document"], page["page_number"]) == (1, "invoice.pdf", 2) and page["score"] > 0
    texts = "".join(event["text"] for event in found["text"] if event["is_answer"])
    (answer,) = found["answered"]
    assert texts == answer["answer"] == "You asked: What is the total?"
    assert answer["evidence"] == [{"number": 1, "text": "It says Total amount 4210 EUR.", "is_relevant": True}]
    marks = served.client.post(f"/api/pages/{page['key']}/marks", json={"text": answer["evidence"][0]["text"]}).json()
    # "Total amount 4210 EUR" stands on the page in this order; each word has a box within the page
    assert marks["origin"] == "words" and len(marks["boxes"]) == 4
    assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in marks["boxes"])
    assert str(served.index.parent) not in json.dumps(found)


def test_a_conversation_goes_on_and_is_kept_over_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.bring()
        first = served.ask("total?")
        conversation = first["turn"][0]["conversation"]
        served.ask("and the number?", conversation=conversation, pages=[first["answered"][0]["pages"][0]["key"]])
        assert [turn.question for turn in served.asker.requests[1].earlier] == ["total?"]
        assert served.asker.requests[1].earlier[0].response == first["answered"][0]["response"]
        assert len(served.asker.requests[1].pages) == 1
        served.parts.history.begin("everybody", "killed in the middle", conversation)
    with serving(tmp_path) as served:
        (listed,) = served.client.get("/api/history").json()["conversations"]
        assert (listed["title"], listed["num_turns"]) == ("total?", 3)
        turns = served.client.get(f"/api/history/{conversation}").json()["turns"]
        assert [turn["state"] for turn in turns] == ["answered", "answered", "stopped"]
        assert turns[0]["answer"] == first["answered"][0] and "ask it again" in turns[2]["problem"]
        markdown = served.client.get(f"/api/history/{conversation}", params={"format": "markdown"})
        assert "attachment" in markdown.headers["content-disposition"]
        assert "## and the number?" in markdown.text and "- invoice.pdf, page " in markdown.text
        served.client.delete(f"/api/history/{conversation}")
        assert served.client.get(f"/api/history/{conversation}").status_code == 404


def test_with_sessions_nobody_sees_the_history_of_another(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.bring()
    with serving(tmp_path, has_sessions=True) as served:
        ada, grace = served.visitor(), served.visitor()
        conversation = served.ask("mine", ada)["turn"][0]["conversation"]
        assert [found["title"] for found in ada.get("/api/history").json()["conversations"]] == ["mine"]
        assert grace.get("/api/history").json()["conversations"] == []
        assert grace.get(f"/api/history/{conversation}").status_code == 404
        assert grace.delete(f"/api/history/{conversation}").status_code == 404
        followed = grace.post("/api/ask", json={"question": "?", "conversation": conversation})
        assert followed.status_code == 404 and len(served.asker.requests) == 1


def test_markdown_shows_markup_as_text(served: Served) -> None:
    served.bring()
    served.asker.evidence = "<script>x</script> [a](http://b)\n# no heading\n1. no list"
    key = served.ask("*bold*")["turn"][0]["conversation"]
    text = served.client.get(f"/api/history/{key}", params={"format": "markdown"}).text
    assert "## \\*bold\\*" in text and "\\<script\\>" in text and "\\[a\\](http" in text
    assert "\n\\# no heading" in text and "\n1\\. no list" in text


@pytest.mark.parametrize("when", ["working", "waiting"])
def test_whoever_hangs_up_takes_the_question_back(tmp_path: Path, when: str) -> None:
    with serving(tmp_path, queue=QueueBounds(at_once=1)) as served:
        served.bring()
        answers, asker = served.parts.answers, served.asker

        async def hang_up() -> None:
            asker.pause.clear()
            blocking = answers.queue.enter("another") if when == "waiting" else None
            question = b'{"question": "late?"}'
            headers = [(b"host", b"127.0.0.1"), (b"x-rsgrpo", b"1"), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/api/ask", "headers": headers, "query_string": b""}
            scope |= {"raw_path": b"/api/ask", "http_version": "1.1", "scheme": "http", "root_path": ""}
            scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
            sent: list[bytes] = []
            gone = asyncio.Event()
            messages = [{"type": "http.request", "body": question, "more_body": False}]

            async def receive():
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message.get("body", b""))
                mark = b"event: waiting" if when == "waiting" else b"event: text"
                if any(mark in part for part in sent):
                    gone.set()

            await asyncio.wait_for(served.client.app(scope, receive, send), 20)
            assert answers.queue.num_waiting == 0 and answers.queue.num_working == (blocking is not None)
            assert len(asker.requests) == asker.num_closed == (when == "working")

        assert served.client.portal is not None
        served.client.portal.call(hang_up)
        (listed,) = served.client.get("/api/history").json()["conversations"]
        (turn,) = served.client.get(f"/api/history/{listed['conversation']}").json()["turns"]
        assert turn["state"] == "stopped"


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 3))
def test_visitors_take_turns_however_many_questions_each_has(visitors: list[int], at_once: int) -> None:
    queue = FairQueue(QueueBounds(at_once=at_once))
    blocking = [queue.enter("first") for _ in range(at_once)]
    tickets = [queue.enter(str(visitor)) for visitor in visitors]
    told = {ticket: queue.ahead(ticket) for ticket in tickets}
    order: list[Ticket] = []
    for done in blocking:
        queue.leave(done)
    while len(order) < len(tickets):
        called = [ticket for ticket in tickets if ticket.called.is_set() and ticket not in order]
        assert called and queue.num_working <= at_once
        # those who are called in one go are ordered as they were told
        called.sort(key=told.__getitem__)
        order += called
        for ticket in called:
            queue.leave(ticket)
    assert [told[ticket] for ticket in order] == list(range(len(tickets)))
    # a visitor's n-th question is never called before another's n-th but by the order of coming within a round
    rounds = {ticket: visitors[: tickets.index(ticket)].count(int(ticket.visitor)) for ticket in tickets}
    assert [rounds[ticket] for ticket in order] == sorted(rounds.values())


def test_a_full_queue_says_so_and_one_visitor_cannot_fill_it() -> None:
    queue = FairQueue(QueueBounds(at_once=1, waiting=3, waiting_of_one=2))
    working = queue.enter("ada")
    waiting = [queue.enter("ada") for _ in range(2)]
    with pytest.raises(RefusedError, match="of yours") as refused:
        queue.enter("ada")
    assert refused.value.status == 429
    other = queue.enter("grace")
    with pytest.raises(RefusedError, match="ask again later"):
        queue.enter("linus")
    queue.leave(waiting[0])
    queue.leave(working)
    assert waiting[1].called.is_set() and not other.called.is_set()


def test_a_stream_that_is_silent_says_that_it_lives_and_is_closed_when_nobody_reads(monkeypatch) -> None:
    monkeypatch.setattr("recipes.serving.event_streams.KEEP_ALIVE_SECONDS", 0.01)
    closed: list[str] = []

    async def slow():
        try:
            yield server_event("a", {"line": "one\ntwo"})
            await asyncio.sleep(60)
        finally:
            closed.append("generator")

    async def listen() -> list[bytes]:
        sent: list[bytes] = []
        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message.get("body", b""))
            if len(sent) == 4:
                gone.set()

        await EventStream(slow(), lambda: closed.append("stream"))({"type": "http"}, receive, send)
        return sent

    _, first, *others = asyncio.run(listen())
    assert first == b'event: a\ndata: {"line":"one\\ntwo"}\n\n' and set(others) == {b": the answer is on its way\n\n"}
    assert closed == ["generator", "stream"]


def _words(text: str) -> list[PlacedWord]:
    return [
        PlacedWord(text=word, box=Box(left=place / 1000, top=0, right=0.9, bottom=0.1))
        for place, word in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("evidence", "page", "marked"),
    [
        ("The total is 4,210 EUR.", "Amount: 4,210 EUR due", ["4,210", "EUR"]),
        ("nothing of this", "is on the page", []),
        ("it says the", "a page of the b", []),  # one short word alone is in every line
        ("Straße", "die STRASSE endet", ["STRASSE"]),
        ("", "words", []),
    ],
    ids=["run", "nothing", "short", "folded", "empty"],
)
def test_words_that_the_evidence_repeats_are_marked(evidence: str, page: str, marked: list[str]) -> None:
    words = _words(page)
    boxes = marked_words(evidence, words)
    assert [word.text for word in words if word.box in boxes] == marked


def test_box_tokens_say_where_the_source_is() -> None:
    line = "see <|box_start|>(100,200),(300,400)<|box_end|> and <|box_start|>(9,9),(1,1)<|box_end|>"
    assert box_tokens_of(line) == [Box(left=0.1, top=0.2, right=0.3, bottom=0.4)]
