"""One update of TRL's GRPOTrainer on given prompts, images, responses and advantages, on request.

Runs in an environment of its own, which has ``trl`` and not this library; ``update_step.py --trl-python`` starts it.
The trainer's own loop runs: data loader, ``_prepare_inputs``, ``compute_loss``, accumulation, optimizer. Only
generation and rewards are replaced, by the work that is given. For every file named on standard input it makes one
optimizer step and writes the gradient to that file (off the clock); a JSON line with seconds answers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class GivenWork(GRPOTrainer):
    """A trainer whose responses and advantages are given."""

    work: dict[str, Any]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        return dict(self.work)


class OnRequest(TrainerCallback):
    """Waits before every optimizer step until one is asked for, and answers how long it took."""

    def __init__(self, model: torch.nn.Module, answers: Any) -> None:
        self._model = model
        self._answers = answers
        self._gradient_file = ""
        self._seconds = self._cpu_seconds = 0.0

    def _go(self) -> None:
        self._seconds -= time.perf_counter()
        self._cpu_seconds -= time.process_time()

    def _hold(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds += time.perf_counter()
        self._cpu_seconds += time.process_time()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the next line, then start the clock."""
        self._gradient_file = sys.stdin.readline().strip()
        if not self._gradient_file:
            os._exit(0)  # asked for no more: leave in the middle of training
        self._seconds = self._cpu_seconds = 0.0
        self._go()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the gradient; nothing of it is clipped."""
        self._hold()
        named = self._model.named_parameters()
        torch.save({name: p.grad.float().cpu() for name, p in named if p.grad is not None}, self._gradient_file)
        self._go()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the seconds of the step as the answer."""
        self._hold()
        answer = {
            "seconds": self._seconds,
            "cpu_seconds": self._cpu_seconds,
            "trl": importlib.metadata.version("trl"),
            "torch": torch.__version__,
        }
        print(json.dumps(answer), file=self._answers, flush=True)


def trainer_of(options: argparse.Namespace, folder: Path, work: dict[str, Any]) -> GivenWork:
    """The trainer with the settings that the comparison needs: same maths, no recomputation, no logging."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    if not options.train_vision:
        model.model.visual.requires_grad_(False)
    num_responses = len(work["advantages"])
    settings = GRPOConfig(
        output_dir=str(options.scratch),
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=num_responses // options.batch,
        num_generations=num_responses,
        max_completion_length=work["completion_ids"].shape[1],
        max_steps=10**6,
        learning_rate=1e-12,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1e9,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "given"}]}] * num_responses)
    trainer = GivenWork(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    trainer.work = work
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="file of tensors, as the trainer's generation returns")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True, help="responses a micro-batch")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--train-vision", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Answers go where standard output went; whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trainer = trainer_of(options, options.model, torch.load(options.work))
    trainer.add_callback(OnRequest(trainer.model, answers))
    trainer.train()


if __name__ == "__main__":
    main()
