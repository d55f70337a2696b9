"""Shards, samples and limits: which images they are, and what an output that has grown makes of them."""

from typing import Any

import pyarrow as pa
import pytest

from ureca.data.manifest import make_manifest, select
from ureca.data.settings import ALL_IMAGES, ImageSelection, validate_shard
from ureca.errors import InputError, OutputError

IDS = [f"image_{number:03d}" for number in range(100)]


def selected(selection: ImageSelection, held: list[str] | None = None, ids: list[str] = IDS) -> list[str]:
    """Ids of what is selected."""
    manifest = make_manifest(image_id=pa.array(ids), uri=pa.array(ids), path=pa.array(ids))
    known = pa.chunked_array([pa.array(held or [], pa.string())])
    rows: list[str] = select(manifest, selection, known)["image_id"].to_pylist()
    return rows


def test_select_of_all_shards_takes_each_image_once() -> None:
    shards = [selected(ImageSelection(shard=f"{number}/7")) for number in range(1, 8)]
    assert sorted(id for shard in shards for id in shard) == IDS
    assert all(5 <= len(shard) <= 25 for shard in shards)
    assert selected(ImageSelection(shard="3/7"), ids=IDS[40:]) == [id for id in shards[2] if id in IDS[40:]]


def test_select_of_a_larger_sample_extends_the_smaller_one() -> None:
    ten, twenty = selected(ImageSelection(sample=10)), selected(ImageSelection(sample=20))
    assert (len(ten), len(twenty)) == (10, 20)
    assert set(ten) < set(twenty)
    assert ten == sorted(ten)  # INPUT's order
    assert ten != IDS[:10]
    assert set(ten) != set(selected(ImageSelection(sample=10, sample_seed=1)))
    assert selected(ImageSelection(sample=1000)) == IDS


def test_select_of_shard_sample_and_limit_applies_them_in_order() -> None:
    shard = selected(ImageSelection(shard="2/3"))
    sample = selected(ImageSelection(shard="2/3", sample=12))
    assert set(sample) < set(shard)
    assert selected(ImageSelection(shard="2/3", sample=12, limit=5)) == sample[:5]
    assert selected(ImageSelection(limit=3)) == IDS[:3]
    assert selected(ALL_IMAGES, held=["another"]) == IDS


def test_select_with_held_images_takes_them_first() -> None:
    first = selected(ImageSelection(limit=5), ids=IDS[50:])
    # INPUT has grown at its beginning: the same command goes on with the same images.
    assert selected(ImageSelection(limit=5), held=first) == first
    assert selected(ImageSelection(limit=7), held=first) == [*IDS[:2], *first]
    sample = selected(ImageSelection(sample=5), ids=IDS[50:])
    assert selected(ImageSelection(sample=5), held=sample) == sample
    assert set(selected(ImageSelection(sample=6), held=sample)) > set(sample)
    # Images that are not in INPUT any more count for nothing.
    assert selected(ImageSelection(limit=5), held=["gone", *IDS[:2]]) == IDS[:5]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"limit": 9}, "OUTPUT holds 10 of the images already, more than limit 9"),
        ({"sample": 9}, "OUTPUT holds 10 of the images already, more than sample 9"),
        ({"shard": "1/2"}, r"OUTPUT holds \d images that are not of the shard 1/2, such as 'image_0"),
    ],
)
def test_select_with_more_held_images_than_selected_is_an_error(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        selected(ImageSelection(**selection), held=IDS[:10])


def test_select_of_an_empty_shard_is_an_error() -> None:
    with pytest.raises(InputError, match="of 1 image, none is of the shard"):
        for number in range(1, 3):
            selected(ImageSelection(shard=f"{number}/2"), ids=["a"])


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/4 ", "01/4", "1/99999999999"])
def test_validate_shard_of_another_form_is_an_error(shard: str) -> None:
    with pytest.raises(ValueError, match="is no shard: the third of eight is 3/8"):
        validate_shard(shard)
