"""Multimodal processing of URECA in vLLM: images and masks to tiles, placeholders to tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config.multimodal import BaseDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    MultiModalDataItems,
    MultiModalDataParser,
    ProcessorBatchItems,
)
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
    TimingContext,
)
from vllm.multimodal.processing.inputs import ProcessorInputs

from ureca.hashing import digest
from ureca.model.configuration import UrecaConfig
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS, UrecaProcessor


@dataclass(frozen=True, eq=False)
class MaskOfImage:
    """A mask and the image that it belongs to, which fused and pooled mask encoders need, too.

    Attributes:
        mask: bool [H, W], with at least one pixel set.
        image: the image; None for the convolutional mask encoder.
    """

    mask: npt.NDArray[np.bool_]
    image: Image.Image | npt.NDArray[np.uint8] | None = None


class MaskItems(ProcessorBatchItems[MaskOfImage]):
    """Masks of a prompt.

    Args:
        masks: the masks.
        from_alpha: True if they are the alpha channels of the prompt's images.
    """

    def __init__(self, masks: Sequence[MaskOfImage], *, from_alpha: bool = False) -> None:
        super().__init__(masks, "mask")
        self.from_alpha = from_alpha

    def get_item_for_hash(self, index: int) -> Any:
        """Return the content by which vLLM caches the features of a mask."""
        item = self.data[index]
        packed = np.packbits(item.mask)
        shape = np.array(item.mask.shape)
        return (shape, packed) if item.image is None else (shape, packed, np.asarray(item.image))


class UrecaDataParser(MultiModalDataParser):
    """Parser of ``multi_modal_data`` with masks.

    Args:
        masks_need_images: pair each mask with its image (fused and pooled mask encoders).
        with_masks: False for a checkpoint whose prompts have no masks: alpha channels are dropped.
        options: arguments of vLLM's parser.
    """

    def __init__(self, *, masks_need_images: bool, with_masks: bool, **options: Any) -> None:
        super().__init__(**options)
        self._with_masks = with_masks
        self._masks_need_images = masks_need_images

    def parse_mm_data(self, mm_data: MultiModalDataDict) -> MultiModalDataItems:
        """Parse the images and masks of a prompt.

        Without masks, images with an alpha channel are images and masks, of the pixels whose alpha is above 0 (the
        whole image if that is none or all): so a client of an OpenAI-compatible server can ask about a region. All
        images of a prompt then need such a channel.

        Raises:
            VLLMValidationError: a mask is not a bool array [H, W] with a pixel set, or only some images have masks.
        """
        data: dict[str, Any] = dict(mm_data)
        images = _listed(data.get("image"))
        alphas = [_alpha(image) for image in images]
        from_alpha = False
        if "mask" not in data and any(alpha is not None for alpha in alphas):
            if any(alpha is None for alpha in alphas):
                raise VLLMValidationError(
                    "some images of the prompt have an alpha channel that marks a region, others have none",
                    parameter="image",
                )
            data["image"] = images = [_without_wrapper(image).convert("RGB") for image in images]
            if self._with_masks:
                from_alpha, data["mask"] = True, alphas
        masks = data.pop("mask", None)
        items = super().parse_mm_data(data)
        if masks is not None:
            items["mask"] = MaskItems(self._parse_masks(masks, images), from_alpha=from_alpha)
        return items

    def _parse_masks(self, data: Any, images: Sequence[Any]) -> list[MaskOfImage]:
        masks = []
        for index, mask in enumerate(_listed(data)):
            if isinstance(mask, MaskOfImage):  # vLLM parses the items that its cache lacks again
                masks.append(mask)
                continue
            if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
                found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
                raise VLLMValidationError(f"mask {index} must be a bool array [H, W], it is {found}", parameter="mask")
            if not mask.any():
                raise VLLMValidationError(
                    f"mask {index} has no pixel set: there is nothing to caption", parameter="mask"
                )
            image = None
            if self._masks_need_images:
                if len(images) not in {1, len(_listed(data))}:
                    raise VLLMValidationError(
                        f"this checkpoint's mask encoder needs one image for all masks, or one for each; the prompt "
                        f"has {len(images)} images and {len(_listed(data))} masks",
                        parameter="mask",
                    )
                image = _without_wrapper(images[0 if len(images) == 1 else index])
            masks.append(MaskOfImage(mask, image))
        return masks


def _listed(data: Any) -> list[Any]:
    if data is None:
        return []
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.dtype == np.bool_:
        return list(data)
    return list(data) if isinstance(data, list | tuple) else [data]


def _without_wrapper(image: Any) -> Any:
    return image.media if isinstance(image, MediaWithBytes) else image


def _alpha(image: Any) -> npt.NDArray[np.bool_] | None:
    """Return the pixels whose alpha is above 0, all if none is; None without an alpha channel."""
    image = _without_wrapper(image)
    if not isinstance(image, Image.Image) or image.mode != "RGBA":
        return None
    marked: npt.NDArray[np.bool_] = np.asarray(image)[..., 3] > 0
    return marked if marked.any() else ~marked


class UrecaProcessingInfo(BaseProcessingInfo):
    """Limits of URECA's prompts."""

    def get_hf_config(self) -> UrecaConfig:
        """Return the configuration of the checkpoint."""
        config: UrecaConfig = self.ctx.get_hf_config(UrecaConfig)
        return config

    def get_hf_processor(self, **kwargs: object) -> UrecaProcessor:
        """Return the processor of the checkpoint; ``max_tiles`` is an argument of its call, not of the processor."""
        kwargs.pop("max_tiles", None)
        processor: UrecaProcessor = self.ctx.get_hf_processor(UrecaProcessor, **kwargs)
        return processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the most items of a prompt by modality; None for no limit."""
        return {"image": None, "mask": None}

    def get_data_parser(self) -> MultiModalDataParser:
        """Build the parser of ``multi_modal_data``."""
        return UrecaDataParser(
            masks_need_images=self.get_hf_config().masks_need_images,
            with_masks=self.get_hf_processor().region_prompt == "mask",
            expected_hidden_size=self._get_expected_hidden_size(),
        )

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the most tokens of an item by modality."""
        processor = self.get_hf_processor()
        max_tiles = processor.image_processor.max_tiles
        num_tiles = max_tiles + (max_tiles > 1)
        return {
            "image": num_tiles * processor.image_seq_length,
            "mask": (num_tiles if processor.dynamic_mask else 1) * processor.num_mask_tokens,
        }


class UrecaDummyInputs(BaseDummyInputsBuilder[UrecaProcessingInfo]):
    """Largest inputs, with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return a prompt with placeholders."""
        return IMAGE_TOKENS[1] * mm_counts.get("image", 0) + MASK_TOKENS[1] * mm_counts.get("mask", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, BaseDummyOptions]
    ) -> MultiModalDataDict:
        """Return images and masks of the most tiles."""
        image_processor = self.info.get_hf_processor().image_processor
        height, width = image_processor.tile_size_px, image_processor.tile_size_px * image_processor.max_tiles
        # At least one image: masks of a fused or pooled encoder need it.
        images = self._get_dummy_images(width=width, height=height, num_images=max(1, mm_counts.get("image", 0)))
        masks = [np.ones((height, width), np.bool_)] * mm_counts.get("mask", 0)
        return {"image": images, "mask": masks} if masks else {"image": images}


class UrecaMultiModalProcessor(BaseMultiModalProcessor[UrecaProcessingInfo]):
    """Converts prompts with images and masks to token ids and uint8 tiles, which the model normalises on its device."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> Any:
        """Process a prompt; placeholders of masks from alpha channels, of which a client knows nothing, are added.

        Raises:
            VLLMValidationError: placeholders and items differ in number, or a mask and its image in size.
        """
        processor, masks = self.info.get_hf_processor(), inputs.mm_data_items.get("mask")
        if isinstance(masks, MaskItems) and masks.from_alpha and processor.mask_token_id not in inputs.prompt:
            tokenizer = processor.tokenizer
            text = tokenizer.decode(inputs.prompt, skip_special_tokens=False)
            image, mask = IMAGE_TOKENS[1], MASK_TOKENS[1]
            # As a conversation with masks is rendered: each on a line of its own, behind its image.
            text = text.replace(f"{image}\n", image).replace(image, f"{image}\n{mask}\n")
            inputs = replace(inputs, prompt=tokenizer(text, add_special_tokens=False).input_ids)
        self._check(inputs)
        return super().apply(inputs, timing_ctx)

    def _check(self, inputs: ProcessorInputs) -> None:
        """Check what vLLM does not: it takes a placeholder without an item for a word, and knows no sizes."""
        processor, items = self.info.get_hf_processor(), inputs.mm_data_items
        modalities = {processor.image_token_id: "image", processor.mask_token_id: "mask"}
        num_placed = {"image": 0, "mask": 0}
        size: tuple[int, int] | None = None
        for token_id in inputs.prompt:
            modality = modalities.get(token_id)
            if modality is None:
                continue
            index = num_placed[modality]
            num_placed[modality] += 1
            item = items[modality][index] if index < len(items.get(modality, ())) else None
            if modality == "image" and item is not None:
                item = _without_wrapper(item)
                size = (item.height, item.width) if isinstance(item, Image.Image) else tuple(np.shape(item)[:2])
            elif modality == "mask" and item is not None and size is not None and item.mask.shape != size:
                raise VLLMValidationError(
                    f"mask {index} is {list(item.mask.shape)} (height, width), its image {list(size)}",
                    parameter="mask",
                )
        for modality, count in num_placed.items():
            if count != len(items.get(modality, ())):
                raise VLLMValidationError(
                    f"the prompt has {count} placeholders of the modality {modality}, but "
                    f"{len(items.get(modality, ()))} items were given",
                    parameter=modality,
                )

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        processor = self.info.get_hf_processor()
        images: Any = hf_data.get("images") or []
        masks: Any = hf_data.get("masks") or []
        asked: Any = hf_kwargs.get("max_tiles")
        max_tiles = int(asked or processor.image_processor.max_tiles)
        outputs: dict[str, torch.Tensor] = {}
        if images:
            tiles = [processor.image_processor.cut(image, max_tiles) for image in images]
            outputs["image_tiles"] = torch.from_numpy(np.concatenate(tiles))
            outputs["num_image_tiles"] = torch.tensor([len(of_image) for of_image in tiles])
            outputs["image_tile_keys"] = torch.from_numpy(tile_keys(np.concatenate(tiles)))
        if masks:
            mask_tiles = [processor.cut_mask(item.mask, max_tiles).astype(np.uint8) for item in masks]
            outputs["mask_tiles"] = torch.from_numpy(np.concatenate(mask_tiles))
            outputs["num_mask_tiles"] = torch.tensor([len(of_mask) for of_mask in mask_tiles])
            if masks[0].image is not None:
                outputs |= _shown_tiles(processor, masks, mask_tiles, max_tiles)
        return BatchFeature(outputs)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields: dict[str, MultiModalFieldConfig] = {}
        for modality, of_tiles in (("image", ("image_tile_keys",)), ("mask", ())):
            counts = hf_inputs.get(f"num_{modality}_tiles", torch.empty(0))
            fields[f"num_{modality}_tiles"] = MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for name in (f"{modality}_tiles", *of_tiles):
                fields[name] = MultiModalFieldConfig.flat_from_sizes(
                    modality, counts, keep_on_cpu=name.endswith("_keys")
                )
        if "shown_tiles" in hf_inputs:
            counts = hf_inputs["num_shown_tiles"]
            fields["num_shown_tiles"] = MultiModalFieldConfig.batched("mask", keep_on_cpu=True)
            fields["shown_tiles"] = MultiModalFieldConfig.flat_from_sizes("mask", counts)
            fields["shown_tile_keys"] = MultiModalFieldConfig.flat_from_sizes("mask", counts, keep_on_cpu=True)
        return fields

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        processor = self.info.get_hf_processor()
        ids = self.info.get_tokenizer().get_vocab()
        data = out_mm_kwargs.get_data()

        def replacement(modality: str, tokens: tuple[str, str, str], tokens_per_tile: int) -> PromptReplacement:
            counts = data.get(f"num_{modality}_tiles", torch.empty(0)).tolist()
            begin, context, end = (ids[token] for token in tokens)

            def expand(index: int) -> PromptUpdateDetails[list[int]]:
                sequence = [begin, *[context] * (int(counts[index]) * tokens_per_tile), end]
                return PromptUpdateDetails.select_token_id(sequence, context)

            return PromptReplacement(modality=modality, target=[context], replacement=expand)

        return [
            replacement("image", IMAGE_TOKENS, processor.image_seq_length),
            replacement("mask", MASK_TOKENS, processor.num_mask_tokens),
        ]


def tile_keys(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Hash tiles uint8 [N, S, S, 3] to int64 [N], by which the model finds features that it has computed before."""
    keys = b"".join(digest([tile], num_bytes=8) for tile in tiles)
    return np.frombuffer(keys, dtype=np.int64).copy()


def _shown_tiles(
    processor: UrecaProcessor,
    masks: Sequence[MaskOfImage],
    mask_tiles: Sequence[npt.NDArray[np.uint8]],
    max_tiles: int,
) -> dict[str, torch.Tensor]:
    """Return the image tiles that the mask tiles with a pixel set, and the first without, cover, with their keys."""
    cut: dict[int, npt.NDArray[np.uint8]] = {}
    shown = []
    for item, tiles in zip(masks, mask_tiles, strict=True):
        image = item.image
        if id(image) not in cut:
            cut[id(image)] = processor.image_processor.cut(image, max_tiles)
        of_image = cut[id(image)][-len(tiles) :]  # one mask tile covers the whole image, as the image's last tile does
        is_shown = np.asarray(tiles.any(axis=(1, 2)))
        is_shown[-1] |= not is_shown.any()  # values of the released weights' kind can miss a thin mask everywhere
        shown.append(of_image[is_shown])
    return {
        "shown_tiles": torch.from_numpy(np.concatenate(shown)),
        "shown_tile_keys": torch.from_numpy(tile_keys(np.concatenate(shown))),
        "num_shown_tiles": torch.tensor([len(tiles) for tiles in shown]),
    }
