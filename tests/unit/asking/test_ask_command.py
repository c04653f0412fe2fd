"""``rsgrpo ask`` as a user calls it, on a server that a test answers for."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.asking.answer_view import plain
from recipes.asking.ask_command import main
from recipes.asking.chat_server import RemoteServer
from rsgrpo.system.processes import is_alive
from tests.fake_server import FakeServer
from tests.programs import TIMEOUT_SECONDS, start_python
from tests.unit.asking.stream_server import RESPONSE, answering, draw_pages, error, streamed
from tests.unit.asking.test_model_choice import make_model, make_run
from tests.unit.documents.handmade_pdfs import make_pdf, text_pages
from tests.unit.recipes.test_text_search_command import make_index


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    answering(fake)
    yield fake
    fake.close()


@pytest.fixture
def pages(tmp_path: Path) -> list[str]:
    return [str(file) for file in draw_pages(tmp_path / "pages", 2)]


def call(server: FakeServer, *arguments: str) -> int:
    return main([*arguments, "--model", server.url, "--model-name", "m"])


def test_the_sections_then_the_answer_with_evidence_pages_and_cost(server, pages, capsys):
    assert call(server, "What stands there?", *pages) == 0
    output = capsys.readouterr().out
    streamed_part, end = output.split("\n\n")
    assert streamed_part.splitlines() == [
        "observe: a two, a three",
        "evidence:",
        "[1]: two",
        "[2]: no relevant information",
        "think: so two",
        "answer: two",
    ]
    lines = [" ".join(line.split()) for line in end.splitlines()]
    assert lines[:4] == ["answer: two", "evidence", f"[1] {pages[0]} two", f"[2] {pages[1]} no relevant information"]
    assert lines[4] == f"pages looked at: [1] {pages[0]}, [2] {pages[1]}"
    assert lines[5].startswith("40 prompt tokens, 12 response tokens; pages ")
    # Nobody looks at it on a terminal.
    assert "\x1b" not in output


def test_json_is_one_object_and_json_events_one_a_line(server, pages, capsys):
    assert call(server, "What?", *pages, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["response"], told["sections"]["think"]) == ("two", RESPONSE, "so two")
    assert told["evidence"][0] == {"number": 1, "text": "two", "is_relevant": True}
    assert [page["document"] for page in told["pages"]] == pages
    assert told["spent"]["prompt_tokens"] == 40
    assert call(server, "What?", *pages, "--json-events") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [events[0]["event"], events[1]["event"], events[-1]["event"]] == ["pages", "text", "answer"]
    assert "".join(event["text"] for event in events if event.get("section") == "answer").strip() == "two"


def test_pages_of_a_document_are_named_by_their_numbers(server, tmp_path, capsys):
    file = tmp_path / "a.pdf"
    file.write_bytes(make_pdf(text_pages("one", "two", "three", "four")))
    assert call(server, "What?", f"{file}#2-3", f"{file}#1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(page["number"], page["document"], page["page_number"]) for page in told["pages"]] == [
        (1, str(file), 2),
        (2, str(file), 3),
        (3, str(file), 1),
    ]


def test_an_index_is_searched_and_its_pages_are_called_by_document_and_number(server, tmp_path, capsys):
    make_index(tmp_path / "index", "a red apple", "a green pear", "a blue plum")
    assert call(server, "Where is the pear?", "--index", str(tmp_path / "index"), "--by", "text", "--pages", "2") == 0
    output = capsys.readouterr().out
    first = output.splitlines()[1] if "no text" in output.splitlines()[0] else output.splitlines()[0]
    assert first.startswith("[1] a.pdf page 2 (")
    assert "pages looked at: [1] a.pdf page 2" in output
    assert call(server, "Where?", "--index", str(tmp_path / "index"), "--by", "text", "--document", "b.pdf") == 1


@pytest.mark.parametrize("name", ["gone.png", "gone.pdf#3", "gone.pdf"])
def test_a_file_that_is_not_there_is_told_in_words_of_the_command(server, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(server, "What?", name) == 1
    told = capsys.readouterr().err
    assert f"{name} cannot be asked about: there is no such file; give its path, as seen from {tmp_path}" in told
    assert "data." not in told
    (tmp_path / "folder").mkdir()
    assert call(server, "What?", "folder") == 1
    assert "it is a folder; name the images or documents in it" in capsys.readouterr().err


def test_signs_of_a_terminal_in_an_answer_or_a_name_do_not_reach_it(server, pages, capsys):
    server.reply = lambda question, attempt: streamed("<answer>\x1b[2Jtwo\x07\nlines</answer>")
    assert call(server, "What?", pages[0]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "two" in output
    assert plain("a\x1b[2J\tb\n") == "a\ufffd[2J\tb\n"


def test_that_the_pages_do_not_say_it_is_told_in_words(server, pages, capsys):
    server.reply = lambda question, attempt: streamed("<answer>insufficient to answer</answer>")
    assert call(server, "What?", pages[0]) == 0
    assert "answer: insufficient to answer (the pages do not say it)" in capsys.readouterr().out


def test_pages_are_shown_in_a_file_in_which_a_page_is_no_program(server, pages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    server.reply = lambda question, attempt: streamed("<evidence>[1]: <script>x</script></evidence><answer>2</answer>")
    assert call(server, "What <b>?", pages[0], "--open") == 0
    file = Path(capsys.readouterr().err.split("pages: ")[1].strip())
    text = file.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;x" in text
    assert 'src="data:image/png;base64,' in text
    assert "What &lt;b&gt;?" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["What?", "nothing.png"], "nothing.png"),
        (["What?", "{pdf}#9"], "it has 2 pages, and page 9 is asked for"),
        (["What?", "{pdf}#2-1"], "pages 2 to 1 are asked for"),
        (["What?", "{text}"], "{text}"),
        (["  ", "{pdf}"], "no question is given"),
        (["What?"], "no page is given"),
        (["What " * 80], "no page is given"),  # longer than a file's name can be
        (["What?", "{pdf}", "--index", "x"], "both given"),
        (["What?", "{pdf}", "--pages", "2"], "--index"),
        (["What?", "--index", "{pdf}"], "{pdf}"),
        (["What?", "--index", "x", "--pages", "0"], "--pages 0"),
        (["What?", "{pdf}", "--keep-engine-minutes", "-1"], "--keep-engine-minutes"),
        (["What?", "{pdf}", "data.max_images=1"], "takes at most 1 page"),
        (["What?", "{pdf}", "prompt.path=nothing.jinja"], "nothing.jinja"),
        (["What?", "{pdf}", "data.max_imagse=1"], "max_imagse"),
        (["--example"], "of a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_is_one_sentence(server, tmp_path, capsys, arguments, words):
    pdf, text = tmp_path / "a.pdf", tmp_path / "a.txt"
    pdf.write_bytes(make_pdf(text_pages("one", "two")))
    text.write_text("words")
    given = [argument.format(pdf=pdf, text=text) for argument in arguments]
    assert call(server, *given) in (1, 2)
    told = capsys.readouterr()
    (line,) = told.err.strip().splitlines()
    assert line.startswith("error: ")
    assert words.format(pdf=pdf, text=text) in line
    assert not told.out
    assert not server.bodies


def test_servers_that_cannot_be_asked_are_one_sentence(server, pages, capsys, monkeypatch):
    monkeypatch.setattr(RemoteServer.__init__, "__kwdefaults__", {"retries": 0, "backoff_seconds": 0.0})
    for reply, words in (
        (error(401, "wrong key"), "--api-key-variable"),
        (error(404, "The model `m` does not exist."), "--model-name"),
        (error(500, "no memory"), "no memory"),
        (error(400, "maximum context length is 10"), "beyond the model's context"),
    ):
        server.reply = lambda question, attempt, reply=reply: reply
        assert call(server, "What?", *pages) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
    server.close()
    assert call(server, "What?", *pages) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "does not answer" in line


def test_models_that_cannot_be_asked_are_one_sentence(pages, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["What?", *pages]) == 1
    assert "uv run train.py" in capsys.readouterr().err
    assert main(["What?", *pages, "--model", str(make_model(tmp_path / "llama", "llama"))]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'llama' model" in line


def test_without_a_question_a_run_tells_one_to_try(tmp_path, capsys):
    run = make_run(tmp_path / "run", "rl")
    assert main(["--model", str(run)]) == 2
    assert f"rsgrpo ask --example --model {run}" in capsys.readouterr().err


def test_ctrl_c_in_the_middle_of_an_answer_ends_the_engine_and_says_so(tmp_path, pages):
    model = make_model(tmp_path / "m")
    code = """
import dataclasses, sys
from recipes.asking import ask_command, engine_choice
from tests.unit.asking.test_engine_server import PROGRAM
settings_of = engine_choice.engine_settings
engine_choice.engine_settings = lambda model: dataclasses.replace(settings_of(model), program=PROGRAM)
sys.exit(ask_command.main(sys.argv[1:]))
"""
    (tmp_path / "q.jinja").write_text("{{ question }}")
    process = start_python(code, "one wait two", *pages, "--model", str(model), f"prompt.path={tmp_path / 'q.jinja'}")
    assert process.stdout is not None
    assert process.stdout.read(len("answer: one wait")) == "answer: one wait"
    mark = f"{tmp_path / 'm'}".encode()
    (engine,) = [pid for pid in children_of(process.pid) if mark in Path(f"/proc/{pid}/cmdline").read_bytes()]
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130
    assert "two" not in output
    assert errors.splitlines()[-1] == "interrupted; ask again"
    assert not is_alive(engine)


def children_of(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
