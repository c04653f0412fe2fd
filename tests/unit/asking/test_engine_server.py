"""The engine's server as a child process, with a program in place of vLLM's that starts at once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from recipes.asking.chat_server import ChatServer, ServerError
from recipes.asking.chat_stream import ChatClient, ChatEnd, ChatQuestion
from recipes.asking.engine_server import EngineServer, EngineSettings, server_program
from recipes.asking.kept_engine import KeptEngine, end_kept_engine, kept_engine_runs
from recipes.asking.shared_restart import SharedRestart
from rsgrpo.config import RolloutConfig, SamplingConfig
from rsgrpo.system.processes import is_alive
from tests.fake_engine import seen_by
from tests.programs import REPOSITORY, TIMEOUT_SECONDS, start_python

PROGRAM = (sys.executable, str(REPOSITORY / "tests" / "fake_engine.py"))
PROMPT = "What stands there ?"


def settings_of(folder: Path) -> EngineSettings:
    folder.mkdir(exist_ok=True)
    return EngineSettings(
        folder=folder,
        name="m",
        device="cpu",
        dtype="float32",
        rollout=RolloutConfig(),
        max_images=2,
        num_threads=1,
        program=PROGRAM,
    )


def num_starts(folder: Path) -> int:
    return len((seen_by(folder) / "starts").read_text())


async def answer(server: ChatServer, text: str) -> tuple[str, ChatEnd]:
    async with ChatClient(server) as client:
        question = ChatQuestion(messages=[{"role": "user", "content": text}], sampling=SamplingConfig())
        pieces = [piece async for piece in client.stream(question)]
    end = pieces.pop()
    assert isinstance(end, ChatEnd)
    return "".join(piece.text for piece in pieces if not isinstance(piece, ChatEnd)), end


def wait_for(is_so) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_answers_by_its_key_alone_and_ends_with_the_block(tmp_path):
    with EngineServer(settings_of(tmp_path / "m"), tmp_path / "log") as server:
        text, end = asyncio.run(answer(server, PROMPT))
        refused = httpx.post(f"{server.address.url}/chat/completions", json={"messages": []}, trust_env=False)
        pid = server.pid
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    assert text == "<answer>What stands there ? </answer>"
    assert (end.finish_reason, end.prompt_tokens, end.cached_tokens, end.response_tokens) == ("stop", 7, 3, 6)
    assert refused.status_code == 401
    # Everybody on the machine may read command lines; a printed record holds no key either.
    assert server.address.key not in command + repr(server.address)
    assert not is_alive(pid)


def test_an_engine_gives_way_by_as_many_steps_as_it_is_told_also_after_its_death(tmp_path):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with EngineServer(settings_of(tmp_path / "m"), tmp_path / "log", niceness=3) as server:
        first = os.getpriority(os.PRIO_PROCESS, server.pid)
        asyncio.run(answer(server, "die now or later"))
        assert server.num_starts == 2
        assert first == os.getpriority(os.PRIO_PROCESS, server.pid) == min(own + 3, 19)
    with EngineServer(settings_of(tmp_path / "m"), tmp_path / "log") as server:
        assert os.getpriority(os.PRIO_PROCESS, server.pid) == own


def test_the_options_say_what_the_engine_of_a_run_has(tmp_path):
    options = settings_of(tmp_path / "m").command(8000)
    assert options[: len(PROGRAM)] == list(PROGRAM)
    assert options[options.index("--limit-mm-per-prompt") + 1] == '{"image": 2, "video": 0}'
    assert options[options.index("--host") + 1] == "127.0.0.1"
    assert options[options.index("--generation-config") + 1] == "vllm"
    assert "--hf-overrides" not in options
    half = dataclasses.replace(settings_of(tmp_path / "m"), dtype="bfloat16").command(8000)
    assert half[half.index("--hf-overrides") + 1] == '{"head_dtype": "float32"}'


def test_an_engine_that_does_not_start_gives_the_cause_and_the_log(tmp_path):
    with pytest.raises(ServerError, match="No room for the cache") as told:
        EngineServer(settings_of(tmp_path / "broken"), tmp_path / "log").start()
    assert "log" in str(told.value)
    assert "initialization failed" not in str(told.value)


def test_an_engine_that_dies_is_started_again_and_its_answer_goes_on_where_it_broke_off(tmp_path):
    # Two pieces came before the death, "<answer>" and "die "; the other four come from the new engine.
    with EngineServer(settings_of(tmp_path / "m"), tmp_path / "log") as server:
        text, end = asyncio.run(answer(server, "die now or later"))
    assert text == "<answer>die now or later </answer>"
    assert end.response_tokens == 6
    assert num_starts(tmp_path / "m") == server.num_starts == 2


def test_an_engine_ends_with_a_parent_that_is_killed(tmp_path):
    settings = settings_of(tmp_path / "m")
    code = f"""
import time
from pathlib import Path
from tests.unit.asking.test_engine_server import EngineServer, settings_of
server = EngineServer(settings_of(Path({str(settings.folder)!r})), Path({str(tmp_path / "log")!r}))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""
    parent = start_python(code)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    wait_for(lambda: not is_alive(pid))
    parent.communicate()


def test_all_who_wait_for_an_engine_share_one_restart_and_hold_up_nothing_else(tmp_path):
    restarts, may_end = [], threading.Event()

    def restart() -> None:
        restarts.append(True)
        assert may_end.wait(TIMEOUT_SECONDS)

    restarting = SharedRestart(restart)

    async def wait() -> list[object]:
        waiting = [asyncio.ensure_future(restarting.done()) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # of no effect for the others
        await asyncio.to_thread(may_end.set)  # the threads that others use are free
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, *others = asyncio.run(wait())
    assert isinstance(first, asyncio.CancelledError) and others == [None] * 49 and restarts == [True]
    restarting.close()
    with pytest.raises(ServerError, match="was stopped"):
        asyncio.run(restarting.done())


def test_an_engine_that_is_being_restarted_is_given_up_when_its_server_is_closed(tmp_path):
    server = EngineServer(settings_of(tmp_path / "slow"), tmp_path / "log")  # it takes a minute to start

    async def stop_asking() -> None:
        asking = asyncio.ensure_future(server.recover(0, "it died"))
        while not server.pid:
            await asyncio.sleep(0.01)
        asking.cancel()

    begin = time.monotonic()
    asyncio.run(stop_asking())
    pid = server.pid
    server.close()
    assert time.monotonic() - begin < 50 and not is_alive(pid)
    with pytest.raises(ServerError, match="was stopped"):
        asyncio.run(server.recover(0, "it died"))


def test_waiting_for_an_engine_that_takes_too_long_ends_with_a_sentence(tmp_path):
    settings = settings_of(tmp_path / "slow")
    short = dataclasses.replace(settings, rollout=RolloutConfig(start_timeout_seconds=0.5))
    server = EngineServer(short, tmp_path / "log")
    with pytest.raises(ServerError, match=r"start_timeout_seconds=0\.5"):
        server.start()
    assert server.pid == 0


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rsgrpo" / "engines"


def test_a_kept_engine_answers_later_calls_until_it_is_ended(tmp_path, cache):
    settings = settings_of(tmp_path / "m")
    assert not kept_engine_runs(settings)
    for _ in range(2):
        with KeptEngine(settings, 10.0) as kept:
            text, _ = asyncio.run(answer(kept, PROMPT))
            assert text == "<answer>What stands there ? </answer>"
        assert kept_engine_runs(settings)
    assert num_starts(tmp_path / "m") == 1
    # Only this user may read where it is and by which key it answers.
    (state,) = cache.glob("*.json")
    assert (state.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)
    # Other settings are another engine.
    assert not kept_engine_runs(dataclasses.replace(settings, max_images=3))
    end_kept_engine(settings)
    assert not kept_engine_runs(settings)
    assert not list(cache.glob("*.json"))


def test_a_kept_engine_ends_when_nobody_has_asked_for_long_but_never_while_somebody_asks(tmp_path, cache):
    settings = settings_of(tmp_path / "m")
    with KeptEngine(settings, 1e-6) as kept:
        time.sleep(1.0)  # four times as long as its keeper waits between two looks
        assert kept_engine_runs(settings)
        assert asyncio.run(answer(kept, PROMPT))[0]
    wait_for(lambda: not kept_engine_runs(settings))


def test_a_kept_engine_that_does_not_start_says_why(tmp_path, cache):
    with pytest.raises(ServerError, match="No room for the cache"), KeptEngine(settings_of(tmp_path / "broken"), 1.0):
        pass


def test_a_call_that_gives_up_waiting_takes_its_keeper_with_it(tmp_path, cache):
    settings = settings_of(tmp_path / "slow")
    seen: list[float] = []

    def give_up(what: str, seconds: float) -> None:
        seen.append(seconds)
        if (seen_by(settings.folder) / "starts").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), KeptEngine(settings, 1.0, give_up):
        pass
    assert seen
    assert not kept_engine_runs(settings)


def test_a_kept_engine_that_was_killed_is_started_again(tmp_path, cache):
    settings = settings_of(tmp_path / "m")
    with KeptEngine(settings, 10.0) as kept:
        text, _ = asyncio.run(answer(kept, "die now"))
    assert text == "<answer>die now </answer>"
    assert num_starts(tmp_path / "m") == 2
    end_kept_engine(settings)


@pytest.mark.parametrize(
    ("model_type", "device", "dtype", "module"),
    [
        ("qwen3_5", "cpu", "float32", "rollout.delta_net_server"),
        ("qwen3_5", "cpu", "bfloat16", "vllm.entrypoints.openai.api_server"),
        ("qwen3_5", "gpu", "float32", "vllm.entrypoints.openai.api_server"),
        ("qwen3_vl", "cpu", "float32", "vllm.entrypoints.openai.api_server"),
    ],
    ids=["vLLM has no kernel", "vLLM has one", "a GPU", "all layers attend"],
)
def test_gated_delta_nets_in_float32_on_a_cpu_are_ours(
    model_type: str, device: str, dtype: str, module: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vision_config": {}}))
    assert server_program(tmp_path, device=device, dtype=dtype)[-1] == module
