"""Processor of URECA: prompts, images and masks to the model's inputs."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .image_processing import UrecaImageProcessor, tile_mask, tile_mask_as_released
from .prompt import QUESTION, REGION_PROMPTS

IMAGE_TOKENS = ("<img>", "<IMG_CONTEXT>", "</img>")
MASK_TOKENS = ("<mask>", "<MASK_CONTEXT>", "</mask>")

SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
)
"""System message that InternVL-2.5 and the released URECA were trained with."""

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKENS[1] + "\n"
    "{% elif part['type'] == 'mask' %}" + MASK_TOKENS[1] + "\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with InternVL's system message unless the conversation has its own; {"type": "mask"} is a region."""


def region_conversation(
    question: str = QUESTION, answer: str | None = None, *, with_mask: bool = True
) -> list[dict[str, Any]]:
    """Build the conversation about one region of one image for `apply_chat_template`; with its answer for training."""
    masks = [{"type": "mask"}] if with_mask else []
    content = [{"type": "image"}, *masks, {"type": "text", "text": question}]
    conversation: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return conversation


class UrecaProcessor(ProcessorMixin):
    """Tokenizes prompts and cuts images and masks, with placeholders expanded to one token for each feature.

    Args:
        image_processor: cuts and normalises images; its tile size and number of tiles apply to masks, too.
        tokenizer: contains each of `IMAGE_TOKENS` and `MASK_TOKENS` as one token.
        num_mask_tokens: number T of tokens of a mask tile, from the model's configuration.
        image_seq_length: number of tokens of an image tile, from the model's configuration.
        dynamic_mask: cut masks into the image's grid; False keeps the whole mask as one tile (the paper's ablation).
        mask_values: "binary" (0 and 1, nearest neighbour) or "released" (`tile_mask_as_released`).
        chat_template: Jinja template; `CHAT_TEMPLATE` if None.
        region_prompt: reference to the region in captioning and training: "mask" (URECA), or a baseline without a
            mask, "none", "contour" or "crop" (see `ureca.model.prompt`).

    Raises:
        ValueError: if the tokenizer lacks a token, or ``mask_values`` or ``region_prompt`` is unknown.
    """

    text_kwargs = {"padding_side": "left"}  # noqa: RUF012

    # transformers restores only arguments that can be positional.
    def __init__(  # noqa: PLR0917
        self,
        image_processor: UrecaImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_mask_tokens: int = 16,
        image_seq_length: int = 256,
        dynamic_mask: bool = True,
        mask_values: str = "binary",
        chat_template: str | None = None,
        region_prompt: str = "mask",
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        if mask_values not in ("binary", "released"):
            raise ValueError(f"mask_values must be 'binary' or 'released', got {mask_values!r}")
        if region_prompt not in REGION_PROMPTS:
            raise ValueError(f"region_prompt must be one of {', '.join(REGION_PROMPTS)}, got {region_prompt!r}")
        vocabulary = tokenizer.get_vocab()
        if unknown := [token for token in (*IMAGE_TOKENS, *MASK_TOKENS) if token not in vocabulary]:
            raise ValueError(f"the tokenizer does not know {', '.join(unknown)}; add them as special tokens first")
        self.num_mask_tokens = num_mask_tokens
        self.image_seq_length = image_seq_length
        self.dynamic_mask = dynamic_mask
        self.mask_values = mask_values
        self.region_prompt = region_prompt
        self.image_token, self.mask_token = IMAGE_TOKENS[1], MASK_TOKENS[1]
        self.image_token_id, self.mask_token_id = vocabulary[self.image_token], vocabulary[self.mask_token]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        masks: Sequence[npt.NDArray[np.bool_]] | None = None,
        max_tiles: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Compute the inputs of the model for one prompt or a batch.

        Args:
            images: PIL images, or RGB pixels, uint8 [H, W, 3], in the order of the ``<IMG_CONTEXT>`` in the prompts.
            text: prompts, in which each image and each mask is one placeholder (the chat template writes them).
            masks: bool [H, W] each, in the order of the ``<MASK_CONTEXT>`` in the prompts, of the size of the last
                image before them.
            max_tiles: most tiles of an image and its masks, overriding the image processor's.
            kwargs: arguments of the tokenizer, ``return_tensors="pt"`` and ``padding=True`` for example.

        Returns:
            ``input_ids`` and ``attention_mask`` [B, L]; ``pixel_values`` [image tiles, 3, S, S]; ``mask_values``
            float32 [mask tiles, 1, S, S].

        Raises:
            ValueError: if placeholders and images or masks differ in number, or a mask and its image in size.
        """
        if text is None:
            raise ValueError("the processor needs text: prompts with a placeholder for each image and each mask")
        prompts = [text] if isinstance(text, str) else list(text)
        masks = [] if masks is None else list(masks)
        pictures = [] if images is None else make_flat_list_of_images(images)
        self._check_masks(prompts, pictures, masks)

        max_tiles = self.image_processor.max_tiles if max_tiles is None else max_tiles
        mask_tiles = [self.tile_mask(mask, max_tiles) for mask in masks]
        expansions = iter([self.mask_placeholders(len(tiles)) for tiles in mask_tiles])
        prompts = [re.sub(re.escape(self.mask_token), lambda _: next(expansions), prompt) for prompt in prompts]
        inputs: BatchFeature = super().__call__(
            images=images, text=prompts, images_kwargs={"max_tiles": max_tiles}, **kwargs
        )
        if mask_tiles:
            inputs["mask_values"] = torch.cat(mask_tiles)
        return inputs

    def tile_mask(self, mask: npt.NDArray[np.bool_], max_tiles: int) -> torch.Tensor:
        """Cut one mask bool [H, W] to the model's input, float32 [N, 1, S, S]."""
        return torch.from_numpy(self.cut_mask(mask, max_tiles).astype(np.float32)).unsqueeze(1)

    def cut_mask(self, mask: npt.NDArray[np.bool_], max_tiles: int) -> npt.NDArray[np.bool_] | npt.NDArray[np.uint8]:
        """Cut one mask bool [H, W] to tiles [N, S, S]: bool, or uint8 if mask values are "released"."""
        cut = tile_mask_as_released if self.mask_values == "released" else tile_mask
        size, limit = self.image_processor.tile_size_px, max_tiles if self.dynamic_mask else 1
        return cut(np.asarray(mask), size=size, max_tiles=limit)

    def mask_placeholders(self, num_tiles: int) -> str:
        """Return the text of a mask of so many tiles."""
        start, context, end = MASK_TOKENS
        return start + context * (self.num_mask_tokens * num_tiles) + end

    def split_prompt(self, question: str) -> tuple[str, str]:
        """Split the prompt about a region: up to and including the image, which an image's regions share, and after the
        mask."""
        with_mask = self.region_prompt == "mask"
        conversation = region_conversation(question, with_mask=with_mask)
        prompt = self.apply_chat_template(conversation, add_generation_prompt=True)
        last = self.mask_token if with_mask else self.image_token
        beginning, _, end = prompt.partition(last)
        return (beginning if with_mask else beginning + last), end

    @property
    def end_of_turn(self) -> str:
        """Text that the chat template puts after an answer, which the model learns to write."""
        answer = "Answer."
        conversation = self.apply_chat_template(region_conversation(QUESTION, answer))
        return str(conversation.rpartition(answer)[2].strip())

    def image_placeholders(self, num_tiles: int) -> str:
        """Return the text of an image of so many tiles."""
        start, context, end = IMAGE_TOKENS
        return start + context * (self.image_seq_length * num_tiles) + end

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Return the text of an image; called by transformers for each image."""
        return self.image_placeholders(int(image_inputs["num_tiles"][image_idx]))

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_tiles"]

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "mask_values"]

    def _check_masks(self, prompts: list[str], pictures: list[Any], masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        num_placeholders = sum(prompt.count(self.mask_token) for prompt in prompts)
        if num_placeholders != len(masks):
            raise ValueError(
                f"the prompts hold {num_placeholders} {self.mask_token} placeholders, but {len(masks)} masks were given"
            )
        if sum(prompt.count(self.image_token) for prompt in prompts) != len(pictures):
            return  # transformers reports the counts of images
        next_picture, next_mask = iter(pictures), iter(enumerate(masks))
        placeholder = re.compile(f"{re.escape(self.image_token)}|{re.escape(self.mask_token)}")
        for prompt in prompts:
            height, width = None, None
            for token in placeholder.findall(prompt):
                if token == self.image_token:
                    height, width = _height_and_width(next(next_picture))
                    continue
                index, mask = next(next_mask)
                if height is not None and np.shape(mask) != (height, width):
                    raise ValueError(
                        f"mask {index} is {list(np.shape(mask))} (height, width), its image [{height}, {width}]"
                    )


def _height_and_width(image: Any) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image.height, image.width
