"""The oracle, which knows the scenes and errs at known rates."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ureca.curation.curator import Curator, curate_regions
from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.protocols import CurationImage, LookAlike
from ureca.curation.settings import ListeningSettings, TreeSettings
from ureca.errors import AnswerError, SettingsError
from ureca.evaluation.uniqueness import resolution
from ureca.llm.usage import metered
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views
from ureca.scenes.files import write_scenes
from ureca.scenes.oracle import Oracle
from ureca.scenes.rendering import Rendering, render
from ureca.scenes.scene import Scene
from ureca.scenes.settings import OracleSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 2, split="test", seed=5, width_px=224, height_px=224)
    return folder / "images"


@pytest.fixture(scope="module")
def rendering() -> Rendering:
    """The first of them."""
    return render("test", 5, 0, 224, 224)


def image_of(rendering: Rendering) -> CurationImage:
    masks = {mask.id: mask for mask in rendering.annotations}
    tree = MaskTree.build(list(masks.values()))
    return CurationImage(
        rendering.pixels, masks, tree, tuple(tree.children[ROOT]), tuple(tree.walk()), Views(rendering.pixels, masks)
    )


def oracle(folder: Path, **settings: Any) -> Oracle:
    return Oracle(OracleSettings(folder=str(folder), **settings))


def unique_of(oracle: Oracle, image: CurationImage, **context: Any) -> dict[int, str]:
    async def all_of_them() -> list[str]:
        alike = (LookAlike(0, "A tree."),)
        return [
            await oracle.unique_caption(image, id, caption="A tree.", lookalikes=alike, **context)
            for id in image.regions
        ]

    return dict(zip(image.regions, asyncio.run(all_of_them()), strict=True))


def outcomes(captions: dict[int, str], scene: Scene) -> list[str]:
    return [resolution(caption, id, scene) for id, caption in captions.items()]


def test_oracle_without_errors_gives_correct_unique_captions(folder: Path, rendering: Rendering) -> None:
    captions = unique_of(oracle(folder, error_rate=0, vagueness=0), image_of(rendering))
    assert set(outcomes(captions, rendering.scene)) == {"correct"}


def test_oracle_errors_follow_rates_and_seed(folder: Path, rendering: Rendering) -> None:
    image = image_of(rendering)
    for settings, expected in (
        ({"error_rate": 1, "vagueness": 0}, "wrong"),
        ({"error_rate": 0, "vagueness": 1}, "ambiguous"),
    ):
        captions = unique_of(oracle(folder, **settings), image)
        found = outcomes(captions, rendering.scene)
        assert found.count(expected) > 0.5 * len(found)
        assert captions == unique_of(oracle(folder, **settings), image)
    some = oracle(folder, error_rate=0.5)
    assert unique_of(some, image) != unique_of(some, image, confused_with="several")
    assert unique_of(some, image) != unique_of(oracle(folder, error_rate=0.5, seed=1), image)


def test_oracle_listens_and_verifies_by_scene(folder: Path, rendering: Rendering) -> None:
    knows, image = oracle(folder, error_rate=0, vagueness=0), image_of(rendering)
    captions = unique_of(knows, image)
    first, second, *_ = captions
    with metered() as used:
        assert asyncio.run(knows.choose(image.views, [first, second], captions[second])) == second
        assert asyncio.run(knows.choose(image.views, [first], captions[second])) == "none"
        assert asyncio.run(knows.choose(image.views, [first], "Not of the language.")) == "none"
        assert asyncio.run(knows.verify(image, first, caption=captions[first])).accepted
        assert not asyncio.run(knows.verify(image, first, caption=captions[second])).accepted
    assert used.num_calls == 5


def test_curation_by_oracle_gives_correct_captions(folder: Path, rendering: Rendering) -> None:
    knows = oracle(folder, error_rate=0, vagueness=0)
    curator = Curator(
        knows,
        DescriptorEmbedder(),
        tree=TreeSettings(min_area_fraction=0.001, max_area_fraction=1),
        verifier=knows,
        listener=knows,
        listening=ListeningSettings(include_all=True),
    )
    rows = asyncio.run(curate_regions(rendering.pixels, list(rendering.annotations), curator))
    good = {row["region_id"]: row["caption"] for row in rows if row["status"] == "ok" and row["verdict"] == "accepted"}
    assert len(good) > 5
    found = outcomes(good, rendering.scene)
    assert "wrong" not in found
    assert found.count("correct") > 0.5 * len(found)


def test_oracle_of_unknown_scene_raises_error(folder: Path, rendering: Rendering, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no scene"):
        oracle(tmp_path)
    other = image_of(render("test", 6, 0, 224, 224))
    with pytest.raises(AnswerError, match="none of the scenes"):
        asyncio.run(oracle(folder).verify(other, other.regions[0], caption="A tree."))
    assert np.any(other.pixels)
