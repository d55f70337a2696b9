"""Cache of image features on disk, for later epochs, runs and phases.

A file holds the projected features of one image. Its name is a hash of the image's tiles, which covers pixels, resizing
and tiling; it is computed where batches are packed, and not by the training process. Its folder is named after the
weights of the vision encoder and the projector. The tune phase reuses the features of the align phase, since neither
changes these weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ureca.errors import OutputError, SettingsError
from ureca.hashing import digest
from ureca.io import replacing
from ureca.training.phases import vision_is_frozen
from ureca.training.settings import AugmentationSettings

if TYPE_CHECKING:
    import torch

    from ureca.model.modeling import UrecaForConditionalGeneration
    from ureca.training.packing import PackedBatch


def check_cacheable(model: UrecaForConditionalGeneration, augmentation: AugmentationSettings) -> None:
    """Reject a cache of features that change during training.

    Raises:
        SettingsError: the vision encoder or the projector is trained, or images are resized at random.
    """
    if not vision_is_frozen(model):
        raise SettingsError(
            "feature_cache.directory: features cannot be cached while the vision encoder or the projector is trained; "
            "leave it out, or train in phase align or tune"
        )
    if len(augmentation.scales) > 1:
        raise SettingsError(
            "feature_cache.directory: features cannot be cached while size augmentation resizes images at random; "
            "leave it out, or set augmentation.min_scale and augmentation.max_scale to the same value"
        )


class FeatureCache:
    """Projected image features on disk.

    A full cache neither adds nor evicts files: every epoch needs each image once, so that evicting the least recently
    used file would always evict the next one needed.

    Args:
        directory: folder shared by runs and workers; created if missing.
        model: the model that computes features, with unsharded weights.
        max_bytes: size limit of all files in the folder.
        num_writers: number of processes that write to the folder at the same time; each gets an equal share of the
            free space.

    Attributes:
        hits, misses: numbers of images whose features were read, and computed, so far.

    Raises:
        OutputError: the folder cannot be created or written to.
    """

    def __init__(
        self,
        directory: Path | str,
        model: UrecaForConditionalGeneration,
        *,
        max_bytes: int,
        num_writers: int = 1,
    ) -> None:
        self._model = model
        self._folder = Path(directory) / vision_fingerprint(model)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the feature cache {directory} cannot be written to: {error}") from error
        used = sum(_size(path) for path in Path(directory).rglob("*"))
        self._free_bytes = max(0, max_bytes - used) // num_writers
        self.hits = 0
        self.misses = 0

    def features(self, batch: PackedBatch) -> torch.Tensor:
        """Load or compute the features of a batch's images: the ``image_features`` of `PackedLoss`.

        Args:
            batch: on any device, from ``ureca.training.packing.from_bytes``: packing hashes its images, so that no
                training step does.

        Returns:
            [image tiles, image_seq_length, D] on the model's device and of its type, without gradient.

        Raises:
            ValueError: the batch has no digests of its images.
        """
        import torch

        if batch.image_digests is None:
            raise ValueError("a batch needs the digests of its images to be cached: serialize it with to_bytes")
        tiles = torch.split(batch.pixel_values, batch.num_tiles.tolist())
        keys = [bytes(each).hex() for each in batch.image_digests.tolist()]
        known = {key: features for key in dict.fromkeys(keys) if (features := self._read(key)) is not None}
        new = {key: of_image for key, of_image in zip(keys, tiles, strict=True) if key not in known}
        self.hits += len(known)
        self.misses += len(new)
        if new:
            computed = self._encode(new.values())
            for key, features in zip(new, computed, strict=True):
                known[key] = features
                self._write(key, features)
        return torch.cat([known[key] for key in keys])

    def _encode(self, images: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        import torch

        images = tuple(images)
        with torch.no_grad():
            pixels = torch.cat(images).to(self._model.device, self._model.dtype)
            features: torch.Tensor = self._model.get_image_features(pixels, return_dict=True).pooler_output
        return torch.split(features, [len(of_image) for of_image in images])

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> torch.Tensor | None:
        """Read cached features; an unreadable file counts as missing and is replaced."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            features = load_file(self._path(key))["features"]
        except (OSError, SafetensorError, KeyError):
            return None
        return features.to(self._model.device)

    def _write(self, key: str, features: torch.Tensor) -> None:
        from safetensors.torch import save

        content = save({"features": features.detach().cpu().contiguous()})
        if len(content) > self._free_bytes:
            return
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        with replacing(path, overwrite=True) as temporary:
            temporary.write_bytes(content)
        self._free_bytes -= len(content)


def vision_fingerprint(model: UrecaForConditionalGeneration) -> str:
    """Hash weights, data type and configuration of vision encoder and projector."""
    parts = model.model
    config = model.config
    names = ("vision_feature_layer", "vision_feature_select_strategy", "downsample_ratio", "projector_hidden_act")
    settings = [config.vision_config.to_json_string(), *(str(getattr(config, name)) for name in names)]

    def content() -> Iterator[str | memoryview]:
        yield "\n".join(settings)
        for part in (parts.vision_tower, parts.multi_modal_projector):
            for name, tensor in part.state_dict().items():
                yield f"{name} {tensor.dtype} {list(tensor.shape)}"
                yield _raw_bytes(tensor)

    return digest(content()).hex()


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # another run replaces it
        return 0
