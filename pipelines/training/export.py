"""Export of the model in training to RUN/model: at the end of the run, or in the background while it goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ureca.errors import OutputError
from ureca.io import clean_replaced_folder
from ureca.model.checkpoints import save_adapter, save_checkpoint
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor


class Exporter:
    """Writes a model's gathered tensors to a folder, which always holds a whole export, the last one that succeeded.

    Args:
        folder: folder to write to; what a killed export left beside it is removed.
        model: the model in training, which is not changed.
        processor: processor of the model.
        base: path of the checkpoint that adapters belong to, to write only these; None for merged weights.
    """

    def __init__(
        self, folder: Path, model: UrecaForConditionalGeneration, processor: UrecaProcessor, *, base: str | None
    ) -> None:
        self._folder, self._model, self._processor, self._base = folder, model, processor, base
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._pending: Future[None] | None = None
        clean_replaced_folder(folder)

    def start(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Write in the background.

        Args:
            tensors: tensors of the model after some steps, which nothing else changes; see `TrainingEngine.gathered`.
            step: the number of these steps, for messages.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, tensors, step)

    def wait(self) -> None:
        """Wait until nothing is written any more.

        Raises:
            OutputError: an export in the background failed since the last call.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        try:
            if self._base is not None:
                save_adapter(self._model, self._folder, base=self._base, state_dict=tensors, overwrite=True)
            else:
                save_checkpoint(self._model, self._processor, self._folder, state_dict=tensors, overwrite=True)
        except Exception as error:
            raise OutputError(
                f"the export to {self._folder} after step {step} failed: {error}. An earlier export in that folder is "
                "unchanged. Remove the cause and run the same command again: it resumes from the last checkpoint"
            ) from error
