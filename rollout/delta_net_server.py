"""vLLM's own server with gated delta nets in float32 on a CPU: ``python -m rollout.delta_net_server`` and its options.

The engine of that server is a process of its own. However it is started, forked or anew, this module has run in it.
"""

from __future__ import annotations

import runpy

from rollout.delta_net_core import use_float32_core

use_float32_core()

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
