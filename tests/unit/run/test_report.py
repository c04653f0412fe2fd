"""The report is one closed file that shows what was recorded and runs nothing that was recorded."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from rsgrpo.config import resolved_yaml
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.run.logger import MetricRow
from rsgrpo.run.recorder import read_groups, record_groups
from rsgrpo.run.report import build_report
from rsgrpo.run.report.__main__ import main as report_main
from rsgrpo.run.report.build import ReportError, embedded_json
from rsgrpo.run.report.curves import collect_charts, collect_times
from rsgrpo.run.report.pictures import embed_pictures
from rsgrpo.run.report.signals import collect_alarms
from rsgrpo.run.summary import read_summary, write_summary
from rsgrpo.types import ImageRef, Sample
from tests.unit.report_run import (
    SCOPES,
    WEIGHTS,
    credited_group,
    make_rollout,
    make_run,
    make_sample,
    response,
    run_config,
)

REPOSITORY = Path(__file__).resolve().parents[3]


class _Page(HTMLParser):
    """Elements, attributes, and the text of each script element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and data.strip():
            self.scripts.append(data)

    @property
    def document(self) -> Any:
        return json.loads(self.scripts[0])


def _page(folder: Path) -> _Page:
    return _Page(build_report(folder).read_text())


def test_the_page_is_closed(tmp_path: Path) -> None:
    page = _page(make_run(tmp_path / "run", num_steps=10))
    assert all(link.startswith("#") for link in page.links)
    assert page.tags.count("script") == 2
    text = (tmp_path / "run" / "report.html").read_text()
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded


def test_every_recorded_thing_is_in_the_document(tmp_path: Path) -> None:
    document = _page(make_run(tmp_path / "run", num_steps=20)).document
    assert document["name"] == "handwriting"
    assert [evaluation["label"] for evaluation in document["evaluations"]] == ["Before SFT", "After SFT", "After RL"]
    accuracy = [
        bar["value"] for evaluation in document["evaluations"] for bar in evaluation["bars"] if bar["key"] == "accuracy"
    ]
    assert accuracy == [0.02, 0.55, 0.82]
    card = document["cards"][0]
    assert card["value"] == "82.0%" and "+27.0 points" in card["note"]  # 82 - 55
    titles = {chart["title"]: [series["name"] for series in chart["series"]] for chart in document["charts"]}
    assert titles["Rewards"] == [name.replace("_", " ") for name in WEIGHTS]
    assert titles["Scope found"] == [name.replace("_", " ") for name in WEIGHTS]
    assert {"Entropy", "Gradient norm", "Log-probability gap", "Response length", "Supervised loss"} <= set(titles)
    assert [phase["name"] for phase in document["times"]["phases"]][:2] == ["generate", "score"]
    groups = document["rollouts"]["groups"]
    assert {(group["stage"], group["step"]) for group in groups} >= {("rl", 10), ("rl", 20), ("after_rl", 0)}
    assert all(image["picture"] is not None for group in groups for image in group["images"])


@pytest.mark.parametrize("stages", [("sft",), ("rl",), ()])
@pytest.mark.parametrize("finished", [True, False])
def test_missing_stages_are_left_out(tmp_path: Path, stages: tuple[str, ...], finished: bool) -> None:
    document = _page(make_run(tmp_path / "run", num_steps=10, stages=stages, finished=finished)).document
    assert ("rl" in stages) == bool(document["times"])
    assert [evaluation["point"] for evaluation in document["evaluations"]] == ["before_sft"] + [
        f"after_{name}" for name in stages
    ]


def test_a_run_without_sections_shows_its_rewards(tmp_path: Path) -> None:
    file = make_run(tmp_path / "run", num_steps=10, stages=("rl",)) / "summary.json"
    summary = read_summary(file)
    evaluations = {
        point: dataclasses.replace(evaluation, well_formed_frac=0.0, accuracy=0.0, em=0.0, f1=0.0, evidence_f1=0.0)
        for point, evaluation in summary.evaluations.items()
    }
    # overlong lies in [-1, 0] and fits no percent axis
    rewards = {point: {"iou": 0.4, "overlong": -0.1} for point in evaluations}
    write_summary(file, dataclasses.replace(summary, evaluations=evaluations, evaluation_rewards=rewards))
    document = _page(tmp_path / "run").document
    names = [bar["name"] for bar in document["evaluations"][-1]["bars"]]
    assert names == ["Reward iou", "Accuracy, answerable", "Accuracy, unanswerable"]
    assert document["cards"][0]["label"] == "Reward iou · After RL" and document["cards"][0]["value"] == "40.0%"
    assert not any("Well-formed" in card["label"] for card in document["cards"])


@pytest.mark.parametrize("finished", [True, False])
def test_the_headline_of_reinforcement_alone_is_its_end(tmp_path: Path, finished: bool) -> None:
    # stage=rl measures before and after; the order of the file and of the summary is not the order of the run
    folder = make_run(tmp_path / "run", num_steps=10, stages=("rl",), finished=finished)
    for name in ("metrics.jsonl", "summary.json"):
        file = folder / name
        if file.exists():
            file.write_text(file.read_text().replace("before_sft", "before_rl"))
    document = _page(folder).document
    assert [evaluation["label"] for evaluation in document["evaluations"]] == ["Before RL", "After RL"]
    card = document["cards"][0]
    assert card["label"] == "Test accuracy · After RL"
    assert (card["value"], card["note"]) == ("82.0%", "+80.0 points · Before RL 2.0%")  # 82 - 2


def test_an_empty_folder_gives_a_page_and_none_an_error(tmp_path: Path) -> None:
    assert _page(tmp_path).document["rollouts"]["groups"] == []
    with pytest.raises(ReportError, match="no folder"):
        build_report(tmp_path / "nowhere")


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"><!-- & \u2028 🙂'


def test_recorded_text_never_becomes_markup(tmp_path: Path) -> None:
    config = run_config()
    config.name = HOSTILE
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    sample = Sample(sample_id=HOSTILE, question=HOSTILE, answers=(HOSTILE,), gold_response=HOSTILE,
                    images=(ImageRef(path=HOSTILE, file=HOSTILE),))  # fmt: skip
    rollouts = [make_rollout(HOSTILE, 0), make_rollout("4", 1)]
    record_groups(tmp_path / "rollouts.jsonl", "rl", 1, [credited_group(sample, rollouts, {"format": [1.0, 0.0]})])
    clean = _page(make_run(tmp_path / "clean", num_steps=1))
    page = _page(tmp_path)
    assert page.tags == clean.tags
    (group,) = page.document["rollouts"]["groups"]
    assert group["rollouts"][0]["text"] == HOSTILE and group["question"] == HOSTILE
    assert group["images"][0] == {"path": HOSTILE, "picture": None, "number": 1}


def test_scripts_build_text_nodes_only() -> None:
    for script in (REPOSITORY / "rsgrpo" / "report").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script.read_text())


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedded_json_reads_back_and_holds_no_markup(value: object) -> None:
    text = embedded_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_contributions_of_all_rewards_add_up_to_the_recorded_credit(tmp_path: Path) -> None:
    # The toggles show w_k A_ik / N_k: over all rewards that is (P - Q) W, with one W for the group.
    texts = [response("7", well_read=True), response("4", well_read=True), response("4", well_read=False)]
    rollouts = [make_rollout(text, index) for index, text in enumerate(texts)]
    values: dict[str, list[float | None]] = {
        "accuracy": [1.0, 0.0, 0.0],
        "evidence": [1.0, 1.0, 0.0],
        "format": [1.0, 1.0, 1.0],
    }
    record_groups(tmp_path / "r.jsonl", "rl", 1, [credited_group(make_sample(), rollouts, values)])
    (group,) = read_groups(tmp_path / "r.jsonl")
    total_weight = WEIGHTS["accuracy"] + WEIGHTS["evidence"]  # format does not vary
    for rollout in group.rollouts:
        credit = [0.0] * len(rollout.positive_weights)
        for reward in rollout.rewards:
            for span in reward.spans:
                for token in range(span.start, span.stop):
                    credit[token] += WEIGHTS[reward.name] * reward.advantage / group.scope_tokens[reward.name]
        recorded = [
            (up - down) * total_weight
            for up, down in zip(rollout.positive_weights, rollout.negative_weights, strict=True)
        ]
        assert credit == pytest.approx(recorded, rel=1e-4, abs=1e-9)
    assert set(SCOPES) == set(WEIGHTS)


def test_large_runs_stay_below_eight_megabytes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    images = []
    for index in range(30):
        file = folder / f"{index}.png"
        Image.effect_noise((900, 1200), 90).save(file)  # noise: the worst case for compression
        images.append(ImageRef(path=file.name, file=str(file)))
    rollouts = [make_rollout("long words " * 600, index) for index in range(8)]
    for step in range(30):
        sample = make_sample(f"q{step}", tuple(images[step : step + 1]))
        group = credited_group(sample, rollouts, {"accuracy": [1.0, *[0.0] * 7]})
        record_groups(folder / "rollouts.jsonl", "rl", step, [group])
    document = _page(folder).document
    assert (folder / "report.html").stat().st_size < 8_000_000
    steps = [group["step"] for group in document["rollouts"]["groups"]]
    assert steps[0] == 0 and steps[-1] == 29
    assert document["rollouts"]["omitted"] == 30 - len(steps)
    assert len(document["rollouts"]["images"]) == len(steps)


def test_images_of_a_moved_run_folder_are_found(tmp_path: Path) -> None:
    file = tmp_path / "new" / "data" / "images" / "1.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (20, 20), "white").save(file)
    moved = ImageRef(path="1.png", file="/gone/runs/old/data/images/1.png")
    broken = ImageRef(path="2.png", file=str(tmp_path / "2.png"))
    (tmp_path / "2.png").write_bytes(b"no image")
    found = embed_pictures([moved, moved, broken], tmp_path / "new", ImageRules())
    assert list(found) == [moved]
    assert found[moved].startswith("data:image/png;base64,")


def test_images_in_a_parquet_table_are_found(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    Image.new("RGB", (10, 10), "red").save(tmp_path / "red.png")
    cells = [{"bytes": b"no image", "path": "a"}, {"bytes": (tmp_path / "red.png").read_bytes(), "path": "b"}]
    parquet.write_table(pyarrow.table({"image": cells, "path": ["a", "b"]}), tmp_path / "images.parquet")
    refs = [ImageRef(path=str(row), parquet_file=str(tmp_path / "images.parquet"), parquet_row=row) for row in (0, 1)]
    assert list(embed_pictures(refs, tmp_path, ImageRules())) == [refs[1]]


def test_curves_are_thinned_and_keep_their_ends() -> None:
    rows = [
        MetricRow(stage="rl", step=step, values={"reward/accuracy": 0.5, "time/update": 1.0}) for step in range(5000)
    ]
    (chart,) = [chart for chart in collect_charts(rows) if chart.title == "Rewards"]
    (series,) = chart.series
    assert len(series.steps) == 600 and (series.steps[0], series.steps[-1]) == (0, 4999)
    assert len(collect_times(rows)["steps"]) == 600  # type: ignore[arg-type]


def _signal_rows(values: Sequence[float], stage: str = "rl", name: str = "signal/evidence/observe") -> list[MetricRow]:
    return [MetricRow(stage=stage, step=step, values={name: value}) for step, value in enumerate(values)]


def test_credit_that_is_more_noise_than_signal_raises_an_alarm() -> None:
    # Mean 0.3, standard deviation sqrt(0.1 / 4) = 0.158, standard error 0.158 / sqrt(5) = 0.071.
    (alarm,) = collect_alarms(_signal_rows([0.2, 0.4, 0.3, 0.1, 0.5]))
    assert alarm.startswith("evidence in <observe>: 0.30 ± 0.07 times as much signal as noise over 5 steps.")
    assert "rewards.evidence.scope" in alarm


@pytest.mark.parametrize(
    "rows",
    [
        _signal_rows([0.2, 0.4, 0.3, 0.1]),  # too few steps
        _signal_rows([2.0, -0.9, 1.9, -0.8, 1.0]),  # mean 0.64, standard error 0.64: unsure
        _signal_rows([3.0, 3.1, 3.2, 2.9, 3.0]),
        _signal_rows([0.1] * 30 + [2.0] * 30),  # only the last 30 count
        _signal_rows([0.1] * 30, stage="sft"),
        _signal_rows([0.1] * 30, name="reward/evidence/mean"),
    ],
)
def test_no_alarm_where_signal_is_not_surely_below_noise(rows: list[MetricRow]) -> None:
    assert collect_alarms(rows) == []


def test_the_page_shows_alarms_and_the_curve_behind_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=10, stages=("rl",))
    with (folder / "metrics.jsonl").open("a") as file:
        for row in _signal_rows([0.2] * 6):
            file.write(json.dumps({"stage": row.stage, "step": row.step, **row.values}) + "\n")
    document = _page(folder).document
    assert [alarm.split(":")[0] for alarm in document["alarms"]] == ["evidence in <observe>"]
    names = [
        series["name"]
        for chart in document["charts"]
        if chart["title"] == "Signal of the credit"
        for series in chart["series"]
    ]
    assert names == ["evidence/observe"]


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    def call(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rsgrpo.run.report", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)

    done = call(tmp_path)
    assert Path(done.stdout.strip()) == tmp_path / "report.html"
    missing = call(tmp_path / "no")
    assert missing.returncode == 1 and missing.stderr.startswith("error: ")


def test_sections_are_those_that_the_run_declared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=2)
    assert _page(run).document["rollouts"]["sections"] == ["observe", "evidence", "think", "answer"]
    file = run / "config.yaml"
    settings = OmegaConf.load(file)
    sections = [{"name": "think", "repeatable": True, "order": 0}, {"name": "answer"}]
    file.write_text(OmegaConf.to_yaml(OmegaConf.merge(settings, {"response": {"sections": sections}})))
    text = "a</think><answer>1</answer><think>b</think>"
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    rows[0] |= {"opened_section": "think"}
    rows[0]["rollouts"][0] |= {
        "text": text,
        "token_char_starts": [0] * len(rows[0]["rollouts"][0]["token_char_starts"]),
    }
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = _page(run).document["rollouts"]
    assert shown["sections"] == ["think", "answer"]
    # every place of a repeated section; the first began in the prompt: "a</think>" has 9 characters, the answer 18
    assert shown["groups"][0]["rollouts"][0]["sections"] == [["think", 0, 9], ["think", 27, 43], ["answer", 9, 27]]


@pytest.mark.parametrize(
    "response_setting", ["response: 3", "response: {sections: []}", "response: {sections: [{a: 1}]}"]
)
def test_damaged_sections_are_shown_as_evisrags(tmp_path: Path, response_setting: str) -> None:
    run = make_run(tmp_path / "run", num_steps=2)
    file = run / "config.yaml"
    lines = file.read_text().split("response:\n")
    behind = lines[1][re.search(r"^\w", lines[1], re.MULTILINE).start() :]  # type: ignore[union-attr]
    file.write_text(f"{lines[0]}{response_setting}\n{behind}")
    assert _page(run).document["rollouts"]["sections"] == ["observe", "evidence", "think", "answer"]


def test_a_folder_that_holds_no_run_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_main([str(tmp_path)]) == 0
    assert f"note: {tmp_path} holds no run" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert report_main([str(tmp_path)]) == 0
    assert "holds no run" not in capsys.readouterr().err
