from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rewards.base import IMAGE_LINES, DeclaredReward, RewardError, batch_reward, needs_gold, reads_sections
from rewards.plugins import LoadedReward, load_rewards
from rsgrpo.config import ResponseFormat, RewardConfig, ScopeConfig, SectionRule

WHOLE = ScopeConfig(start="begin", stop="end")


def load(function: str, folder: Path = Path(), **kwargs: Any) -> LoadedReward:
    configs = {"mine": RewardConfig(function=function, scope=WHOLE, kwargs=dict(kwargs))}
    return load_rewards(configs, folder)[0]


@pytest.mark.parametrize(
    ("function", "kwargs", "gold_sections"),
    [
        ("rewards.functions.accuracy:accuracy", {}, ("answer",)),
        ("rewards.functions.evidence:evidence", {"relevant_weight": 2.0}, ("evidence",)),
        ("rewards.functions.evidence:evidence_per_image", {}, ("evidence",)),
        ("rewards.functions.format:format", {}, ()),
        ("rewards.functions.length:overlong", {"max_response_tokens": 8, "buffer_tokens": 2}, ()),
        ("rewards.functions.copying:observe_citation", {}, ()),
        ("rewards.functions.copying:think_copy", {}, ()),
        ("rewards.functions.upstream:accuracy", {}, ("answer",)),
        ("rewards.functions.upstream:overlong", {}, ()),
    ],
)
def test_our_own_rewards_load(function: str, kwargs: dict[str, Any], gold_sections: tuple[str, ...]) -> None:
    reward = load(function, **kwargs)
    assert reward.name == "mine"
    assert reward.gold_sections == gold_sections
    assert not reward.is_async
    assert not reward.is_batch


def test_a_file_is_found_relative_to_the_folder_and_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "short.py"
    file.write_text("def short(call, limit=3):\n    return float(len(call) < limit)\n")
    reward = load("own/short.py:short", tmp_path)
    assert reward.function("ab", limit=2) == 0.0
    assert load("own/short.py:short", tmp_path).function is reward.function
    # another file of the same name is another module
    (tmp_path / "short.py").write_text("def short(call):\n    return 7.0\n")
    assert load("short.py:short", tmp_path).function("") == 7.0


def test_async_and_batch_functions_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text(
        "from rewards.base import batch_reward\n"
        "async def served(call):\n    return 1.0\n"
        "@batch_reward\ndef together(calls):\n    return [0.0 for _ in calls]\n"
        "@batch_reward\nasync def both(calls):\n    return [0.0 for _ in calls]\n"
        "class Judge:\n    async def __call__(self, call):\n        return 1.0\n"
        "judge = Judge()\n"
    )
    kinds = {name: load(f"kinds.py:{name}", tmp_path) for name in ("served", "together", "both", "judge")}
    assert {name: (function.is_async, function.is_batch) for name, function in kinds.items()} == {
        "served": (True, False),
        "together": (False, True),
        "both": (True, True),
        "judge": (True, False),
    }


def test_declarations_of_gold_sections_and_batches_combine() -> None:
    declared = needs_gold("answer", "evidence")(batch_reward(lambda calls: [1.0 for _ in calls]))
    assert declared == DeclaredReward(function=declared.function, is_batch=True, gold_sections=("answer", "evidence"))
    assert declared([1, 2]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        ("rewards.nothing:accuracy", {}, "cannot import rewards.nothing"),
        ("rewards.functions.accuracy:acuracy", {}, "rewards.functions.accuracy has no function 'acuracy'"),
        ("rewards.functions.accuracy:annotations", {}, "has no function 'annotations'"),
        ("own.py:f", {}, "there is no file"),
        ("rewards.functions.length:overlong", {}, "missing a required argument: 'max_response_tokens'"),
        ("rewards.functions.format:format", {"strict": True}, "got an unexpected keyword argument 'strict'"),
        ("broken.py:f", {}, "cannot load .*broken.py"),
        ("wants.py:f", {}, "cannot load .*wants.py.*no_such_package"),
    ],
)
def test_what_cannot_be_called_is_refused_at_load_time(
    tmp_path: Path, function: str, kwargs: dict[str, Any], message: str
) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "wants.py").write_text("import no_such_package\n")
    with pytest.raises(RewardError, match=r"rewards\.mine.*" + message):
        load(function, tmp_path, **kwargs)


def test_a_file_mended_after_a_failure_loads(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("def f(:\n")
    with pytest.raises(RewardError):
        load("late.py:f", tmp_path)
    file.write_text("def f(call):\n    return 1.0\n")
    assert load("late.py:f", tmp_path).function(None) == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0.*take the exit out of it"),
        ("x = nope", "NameError: name 'nope' is not defined"),
        ("def f(:", "SyntaxError"),
        ("f = max", "does not say what arguments it takes"),
        ("raise ValueError('x' * 3000)", "ValueError: xxx"),
    ],
    ids=["exit", "name", "syntax", "builtin", "long"],
)
@pytest.mark.parametrize("is_module", [False, True], ids=["file", "module"])
def test_whatever_a_plugin_does_while_it_loads_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str, is_module: bool
) -> None:
    # A silent end with status 0 would look like a run that went well.
    (tmp_path / "plugin_that_fails.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_that_fails", raising=False)
    with pytest.raises(RewardError, match=said) as found:
        load("plugin_that_fails:f" if is_module else "plugin_that_fails.py:f", tmp_path)
    assert "rewards.mine.function" in str(found.value)
    assert len(str(found.value)) < 490


@pytest.mark.parametrize("function", [":f", "..:f", ".near:f"])
def test_a_module_needs_its_whole_name(function: str) -> None:
    with pytest.raises(RewardError, match="is no whole name of a module"):
        load(function)


FINAL = ResponseFormat(
    sections=(SectionRule(name="look", order=0, per_image_lines=True), SectionRule(name="final", order=1)),
    answer_section="final",
)
BARE = ResponseFormat(sections=(SectionRule(name="final", order=0),), answer_section="final")


def load_in(function: str, response_format: ResponseFormat, **kwargs: Any) -> LoadedReward:
    return load_rewards({"mine": RewardConfig(function=function, scope=WHOLE, kwargs=kwargs)}, Path(), response_format)[
        0
    ]


def test_the_answers_section_is_the_runs_or_the_arguments_and_its_gold_is_needed() -> None:
    for function in ("accuracy:accuracy", "haystack:yes_no"):
        reward = load_in(f"rewards.functions.{function}", FINAL)
        assert (reward.gold_sections, reward.answer_section) == (("final",), "final")
    reward = load_in("rewards.functions.accuracy:accuracy", FINAL, section="look")
    assert (reward.gold_sections, reward.answer_section) == (("look",), "look")
    evidence = load_in("rewards.functions.evidence:evidence", FINAL)
    assert (evidence.gold_sections, evidence.answer_section) == (("look",), "final")


@pytest.mark.parametrize(
    ("function", "response_format", "kwargs", "message"),
    [
        (
            "accuracy:accuracy",
            FINAL,
            {"section": "answer"},
            r"rewards\.mine\.kwargs\.section='answer' is not declared; .* has look, final",
        ),
        ("multiple_choice:choice", FINAL, {"section": "Final"}, "section='Final' is not declared"),
        ("haystack:yes_no", FINAL, {"section": "answer"}, "section='answer' is not declared"),
        ("grounding:box_count", FINAL, {"section": "box"}, "section='box' is not declared"),
        ("format:sections", FINAL, {"names": ["look", "answer"]}, r"kwargs\.names='answer' is not declared"),
        (
            "copying:think_copy",
            FINAL,
            {"section": "look", "answer_section": "answer"},
            r"kwargs\.answer_section='answer' is not declared",
        ),
        ("copying:observe_citation", FINAL, {}, "section='observe' is not declared"),
        ("evidence:evidence", BARE, {}, "reads one line per image; response.sections has final: set per_image_lines"),
        ("haystack:needle_found", BARE, {}, "reads one line per image"),
        # the public code's know EVisRAG's tags
        ("upstream:accuracy", FINAL, {}, "reads the section 'answer', which is not declared"),
        ("upstream:format", FINAL, {}, "reads the section 'observe', which is not declared"),
        ("upstream:is_think", FINAL, {}, "reads the section 'think'"),
    ],
)
def test_a_reward_on_a_section_that_is_not_declared_is_refused_when_it_is_loaded(
    function: str, response_format: ResponseFormat, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        load_in(f"rewards.functions.{function}", response_format, **kwargs)


def test_no_section_may_be_named() -> None:
    assert load_in("rewards.functions.grounding:iou", FINAL).gold_sections == ("boxes",)


def test_declared_sections_and_gold_add_up() -> None:
    @reads_sections(IMAGE_LINES, arguments=("section",))
    @needs_gold("boxes", answer_in="section")
    def mine(call: object, section: str = "answer") -> float:
        return 0.0

    assert (mine.gold_sections, mine.answer_in) == (("boxes",), "section")
    assert (mine.sections, mine.section_arguments) == ((IMAGE_LINES,), ("section",))
