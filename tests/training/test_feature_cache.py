"""The feature cache: equal losses, hits, its size limit, and damaged files."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.training.test_packing import Built, make_examples
from ureca.errors import OutputError, SettingsError
from ureca.model.initialization import build_tiny
from ureca.model.settings import TinySizes
from ureca.training.feature_cache import FeatureCache, check_cacheable, vision_fingerprint
from ureca.training.loss import PackedLoss
from ureca.training.packing import ImageExample, PackedBatch, Packer, from_bytes, to_bytes
from ureca.training.phases import Align, Full, Tune, prepare
from ureca.training.settings import AugmentationSettings

MANY_BYTES = 2**30


@pytest.fixture
def aligning() -> Built:
    model, processor = build_tiny()
    return prepare(model, Align()), processor


def batch_of(built: Built, seed: int = 0) -> PackedBatch:
    return serialized(built, make_examples(seed))


def serialized(built: Built, examples: list[ImageExample]) -> PackedBatch:
    image_processor = built[1].image_processor
    return from_bytes(to_bytes(Packer(built[1]).pack(examples), image_processor), image_processor)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("mask_encoder", ["convolutional", "fused"])
def test_features_from_cache_give_the_same_losses_and_gradients(mask_encoder: str, tmp_path: Path) -> None:
    model, processor = build_tiny(TinySizes(mask_encoder=mask_encoder))
    prepare(model, Align())
    batch, training = batch_of((model, processor)), PackedLoss(model)
    results = []
    for image_features in (
        None,
        FeatureCache(tmp_path, model, max_bytes=MANY_BYTES).features(batch),
        FeatureCache(tmp_path, model, max_bytes=MANY_BYTES).features(batch),
    ):
        loss = training(batch, image_features)
        loss.backward()
        results.append((loss.item(), model.model.mask_encoder.projection.weight.grad.clone()))
        model.zero_grad()
    (expected, gradient), *others = results
    for loss, other in others:
        assert loss == pytest.approx(expected, rel=1e-6)
        assert torch.allclose(other, gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


def test_features_of_a_cached_batch_hit(aligning: Built, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES)
    first = cache.features(batch_of(aligning))
    assert (cache.hits, cache.misses) == (0, 2)
    assert torch.equal(cache.features(batch_of(aligning)), first)
    assert (cache.hits, cache.misses) == (2, 2)
    tuning = prepare(build_tiny()[0], Tune(rank=2, alpha=2))
    later = FeatureCache(tmp_path, tuning, max_bytes=MANY_BYTES)
    assert torch.equal(later.features(batch_of(aligning)), first)
    assert (later.hits, later.misses) == (2, 0)


def test_features_of_a_repeated_image_are_computed_once(aligning: Built, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES)
    example = make_examples()[0]
    features = cache.features(serialized(aligning, [example, example]))
    assert cache.misses == 1
    assert torch.equal(features[: len(features) // 2], features[len(features) // 2 :])


def test_features_in_bfloat16_equal_computed_ones(tmp_path: Path) -> None:
    model, processor = build_tiny()
    prepare(model.to(torch.bfloat16), Align())
    cache = FeatureCache(tmp_path, model, max_bytes=MANY_BYTES)
    batch = batch_of((model, processor))
    assert torch.equal(cache.features(batch), cache.features(batch))
    assert cache.features(batch).dtype == torch.bfloat16
    assert vision_fingerprint(model) != vision_fingerprint(build_tiny()[0])


def test_features_with_other_weights_miss(aligning: Built, tmp_path: Path) -> None:
    FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES).features(batch_of(aligning))
    other, _ = build_tiny(seed=1)
    cache = FeatureCache(tmp_path, other, max_bytes=MANY_BYTES)
    cache.features(batch_of(aligning))
    assert cache.hits == 0


def test_feature_cache_that_is_full_adds_nothing(aligning: Built, tmp_path: Path) -> None:
    bound = 40_000
    for seed in range(12):
        cache = FeatureCache(tmp_path, aligning[0], max_bytes=bound, num_writers=2)
        batch = batch_of(aligning, seed)
        expected = PackedLoss(aligning[0])(batch).item()
        assert PackedLoss(aligning[0])(batch, cache.features(batch)).item() == pytest.approx(expected, rel=1e-6)
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert sizes
    assert sum(sizes) <= bound
    again = FeatureCache(tmp_path, aligning[0], max_bytes=bound)
    again.features(batch_of(aligning, 0))
    assert again.hits == 2, "what came first stays"


def test_features_with_broken_file_are_recomputed(aligning: Built, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES)
    expected = cache.features(batch_of(aligning))
    cut, empty = files(tmp_path)
    cut.write_bytes(cut.read_bytes()[:-10])
    empty.write_bytes(b"")
    assert torch.equal(cache.features(batch_of(aligning)), expected)
    cache = FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES)
    cache.features(batch_of(aligning))
    assert cache.hits == 2


def test_feature_cache_after_a_kill_has_only_complete_files(aligning: Built, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES)
    cache.features(serialized(aligning, make_examples()[:1]))
    write = Path.write_bytes

    def write_half_and_die(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def compute_another() -> None:
        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        Path.write_bytes = write_half_and_die  # type: ignore[assignment, method-assign]
        cache.features(batch_of(aligning))

    process = multiprocessing.get_context("fork").Process(target=compute_another)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len([path for path in files(tmp_path) if not path.name.startswith(".")]) == 1
    cache = FeatureCache(tmp_path, aligning[0], max_bytes=MANY_BYTES)
    cache.features(batch_of(aligning))
    assert (cache.hits, cache.misses) == (1, 1)


def test_check_cacheable_with_changing_features_raises(aligning: Built, tmp_path: Path) -> None:
    check_cacheable(aligning[0], AugmentationSettings())
    check_cacheable(aligning[0], AugmentationSettings(min_scale=0.5, max_scale=0.5))
    with pytest.raises(SettingsError, match="size augmentation"):
        check_cacheable(aligning[0], AugmentationSettings(min_scale=0.5, max_scale=1.5))
    with pytest.raises(SettingsError, match="projector is trained"):
        check_cacheable(prepare(build_tiny()[0], Full()), AugmentationSettings())
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written to"):
        FeatureCache(tmp_path / "file", aligning[0], max_bytes=MANY_BYTES)


def test_features_of_a_serialized_batch_hash_no_pixels(
    tmp_path: Path, aligning: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = aligning
    batch = Packer(processor).pack(make_examples())
    data = to_bytes(batch, processor.image_processor)
    cache = FeatureCache(tmp_path, model, max_bytes=MANY_BYTES)
    monkeypatch.setattr("ureca.training.feature_cache.digest", lambda *parts: pytest.fail("pixels are hashed"))
    with pytest.raises(ValueError, match="digests of its images"):
        cache.features(batch)
    first = cache.features(from_bytes(data, processor.image_processor))
    again = cache.features(from_bytes(data, processor.image_processor))
    assert torch.equal(first, again)
    assert (cache.hits, cache.misses) == (len(batch.num_tiles), len(batch.num_tiles))
