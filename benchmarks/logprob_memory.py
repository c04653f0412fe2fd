"""Peak memory of the pass from hidden states to log-probabilities, forward and backward, by prompt length.

Each case runs in a process of its own and reports how far its memory rose above what hidden states, the head's
weights and both of their gradients take anyway. ``all logits`` is what a plain implementation keeps at least once:
a float32 logit for every token of every sequence (prompt and response, n times) and every word of the vocabulary;
``plain`` measures one at a size where it fits.

    python benchmarks/logprob_memory.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from workload import report

from rsgrpo.model.logprobs import response_logprobs
from rsgrpo.model.micro_batches import Segment, pack, predictor_index

_MIB = 2**20


def _status(key: str) -> int:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


class Peak:
    """How far memory rises while the block runs, in bytes: of the GPU if the pass runs there, else of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        after = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else _status("VmHWM")
        self.bytes = after - self._before


def run_case(options: argparse.Namespace) -> None:
    """One pass in this process; prints MiB."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lengths = (options.response_tokens,) * options.num_responses
    row = pack(
        [
            Segment(
                group=0,
                responses=tuple(range(len(lengths))),
                num_prompt_tokens=options.prompt_tokens[0],
                response_lengths=lengths,
            )
        ]
    )
    num_tokens = row.num_tokens
    if options.plain:  # every sequence on its own, all positions
        num_tokens = options.num_responses * (options.prompt_tokens[0] + options.response_tokens)
    hidden = torch.randn(num_tokens, options.hidden, device=device).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.hidden, device=device) / 16).requires_grad_()
    # Their gradients are needed in any case: they exist before the measurement and are only added to.
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
    predictors = torch.from_numpy(predictor_index(row)).to(device)
    targets = torch.randint(0, options.vocabulary, (len(predictors),), device=device)
    with Peak(device) as peak:
        if options.plain:
            distribution = torch.log_softmax(hidden @ weight.T, dim=-1)
            targets = torch.randint(0, options.vocabulary, (num_tokens,), device=device)
            logprobs = distribution.gather(-1, targets[:, None])[:, 0]
        else:
            logprobs, _ = response_logprobs(hidden.index_select(0, predictors), weight, targets)
        logprobs.sum().backward()
    print(peak.bytes / _MIB)


def _measured(options: argparse.Namespace, prompt_tokens: int, num_responses: int, *, plain: bool) -> float:
    """MiB of a case in a process of its own."""
    command = [sys.executable, __file__, "--case", "--prompt-tokens", str(prompt_tokens)]
    command += ["--response-tokens", str(options.response_tokens), "--num-responses", str(num_responses)]
    command += ["--vocabulary", str(options.vocabulary), "--hidden", str(options.hidden)]
    command += ["--threads", str(options.threads), *(["--plain"] if plain else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _row(options: argparse.Namespace, prompt_tokens: int, num_responses: int, *, plain: bool) -> dict[str, Any]:
    tokens = num_responses * (prompt_tokens + options.response_tokens)
    all_logits = tokens * options.vocabulary * 4 / _MIB
    peak = _measured(options, prompt_tokens, num_responses, plain=plain)
    return {
        "path": "plain" if plain else "responses only, in chunks",
        "prompt tokens": prompt_tokens,
        "responses": num_responses,
        "peak MiB": round(peak, 1),
        "all logits, MiB": round(all_logits, 1),
        "share": round(peak / all_logits, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--response-tokens", type=int, default=256)
    parser.add_argument("--num-responses", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain-prompt-tokens", type=int, default=512, help="of the plain case, one response; 0: none")
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options)
        return
    rows = [_row(options, prompt, options.num_responses, plain=False) for prompt in options.prompt_tokens]
    if options.plain_prompt_tokens:
        rows.append(_row(options, options.plain_prompt_tokens, 1, plain=True))
    report("logprob_memory", options, rows)


if __name__ == "__main__":
    main()
