"""Make the model that the golden job starts from: ``uv run python -m tests.golden.make_model``.

It is committed, since learning depends on the CPU's last bits. Making it anew changes the whole trace.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from rsgrpo.system.machine import REPOSITORY
from tests.golden.job import MODEL, SIZE

_STEPS = 450  # as in the quickstart: most responses are well formed, some answers and lines of evidence right


def main() -> None:
    """Train the quickstart's supervised stage in the golden size; weights in 16 bits, to be loaded as float32."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        run = Path(name) / "run"
        settings = [f"run_dir={run}", "stage=sft", f"sft.max_steps={_STEPS}", "logging.wandb_mode=disabled", *SIZE]
        subprocess.run([sys.executable, "train.py", *settings], cwd=REPOSITORY, check=True)
        shutil.rmtree(MODEL, ignore_errors=True)
        shutil.copytree(run / "models" / "sft", MODEL)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.bfloat16)
    model.save_pretrained(MODEL)


if __name__ == "__main__":
    main()
