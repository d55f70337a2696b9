"""Captions of regions by ``ray.serve.llm``: a checkpoint in Ray's own server for vLLM, which OpenAI clients ask.

    python examples/ray_serve_llm.py [CHECKPOINT]

Needs an environment with vLLM and the library (docs/engines.md). The default checkpoint is the shipped model of scenes.
A client sends an image whose alpha channel is above 0 inside the region, as to `vllm serve`. The service listens on
port 8000 of this machine.
"""

import sys
from typing import Any

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from ureca.model.checkpoint_files import default_dtype, folder_of


def build(checkpoint: str, **engine_options: Any) -> serve.Application:
    """Build the application of one replica, called ``ureca``.

    Args:
        checkpoint: name or folder of the checkpoint.
        engine_options: further fields of vLLM's ``AsyncEngineArgs``.
    """
    with_gpu = ray.cluster_resources().get("GPU", 0) > 0
    config = LLMConfig(
        model_loading_config={"model_id": "ureca", "model_source": str(folder_of(checkpoint))},
        engine_kwargs={
            "dtype": default_dtype(checkpoint),
            "limit_mm_per_prompt": {"image": 1, "mask": 1, "video": 0},
            "media_io_kwargs": {"image": {"image_mode": "RGBA"}},  # without it, vLLM drops alpha channels
            "enforce_eager": not with_gpu,
            **engine_options,
        },
        accelerator_config={"kind": "gpu" if with_gpu else "cpu"},
        deployment_config={"num_replicas": 1},
    )
    return build_openai_app({"llm_configs": [config]})


def main(argv: list[str]) -> int:
    """Serve until the process is interrupted."""
    ray.init(ignore_reinit_error=True)
    serve.run(build(argv[0] if argv else "scenes"), name="ureca", blocking=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
