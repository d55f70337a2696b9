"""Where features go in a prompt: the runs of placeholder tokens of its images and masks."""

from itertools import groupby

import torch


def fill_placeholders(
    embeddings: torch.Tensor, token_ids: torch.Tensor | None, placeholder_id: int, features: torch.Tensor, name: str
) -> torch.Tensor:
    """Put features where the placeholders stand, in the order of the prompts.

    Args:
        embeddings: float [B, L, D].
        token_ids: int64 [B, L]; None is an error, for without them nobody knows where features go.
        placeholder_id: the token that is replaced.
        features: float [N, K, D], K tokens for each of N tiles.
        name: "image" or "mask", for the error.

    Returns:
        float [B, L, D].

    Raises:
        ValueError: with both counts, if there are more or fewer features than placeholders.
    """
    if token_ids is None:
        raise ValueError(f"{name} features need input_ids, which say where they go; inputs_embeds alone do not")
    is_placeholder = token_ids == placeholder_id
    num_placeholders = int(is_placeholder.sum())
    num_features = features.shape[0] * features.shape[1]
    if num_placeholders != num_features:
        raise ValueError(
            f"{name} features do not fit their placeholders: the prompts hold {num_placeholders} {name} placeholders "
            f"(token {placeholder_id}), the {features.shape[0]} {name} tiles give {num_features} features"
        )
    return embeddings.masked_scatter(is_placeholder.unsqueeze(-1), features.to(embeddings.device, embeddings.dtype))


def tiles_per_prompt(token_ids: torch.Tensor, placeholder_id: int, tokens_per_tile: int) -> list[int]:
    """How many tiles each prompt of a batch [B, L] holds placeholders for."""
    return [int(count) // tokens_per_tile for count in (token_ids == placeholder_id).sum(-1)]


def image_tile_of_mask_tile(
    token_ids: torch.Tensor, *, image_token_id: int, mask_token_id: int, image_seq_length: int, num_mask_tokens: int
) -> torch.Tensor:
    """Which image tile shows what a mask tile covers; a mask belongs to the last image before it in its prompt.

    A mask of one tile covers the whole image, as the last tile of an image does: its thumbnail, or its only tile.

    Args:
        token_ids: int64 [B, L]; the placeholders of one image, or of one mask, stand next to each other and other
            tokens stand between two images or two masks.

    Returns:
        int64 [number of mask tiles in the batch]: indices into the batch's image tiles.

    Raises:
        ValueError: if a mask has no image before it, or not the same number of tiles as its image.
    """
    tile_indices: list[int] = []
    num_image_tiles = 0
    for prompt in token_ids.tolist():
        image_tiles = range(0)
        for token_id, run in groupby(prompt):
            length = sum(1 for _ in run)
            if token_id == image_token_id:
                image_tiles = range(num_image_tiles, num_image_tiles + length // image_seq_length)
                num_image_tiles = image_tiles.stop
            elif token_id == mask_token_id:
                shown_by = image_tiles[-1:] if length == num_mask_tokens else image_tiles
                if length != len(shown_by) * num_mask_tokens:
                    raise ValueError(
                        f"the fused mask encoder needs one mask tile, or one for each tile of the image before it: the "
                        f"image has {len(image_tiles)} tiles, the mask {length // num_mask_tokens}"
                    )
                tile_indices.extend(shown_by)
    return torch.tensor(tile_indices, dtype=torch.long, device=token_ids.device)
