"""Confidence intervals by resampling images: regions of one image are not independent of one another."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ureca.evaluation.measures import Floats, Measure

_WEIGHTS_AT_ONCE = 4_000_000


class ImageBootstrap:
    """Draws images with replacement, as many as there are, again and again; the same seed draws the same ones.

    Models that were evaluated on the same images get the same draws.

    Args:
        image_of_region: for each region the number of its image, from 0, int [N].
        num_images: of the whole set.
    """

    def __init__(
        self,
        image_of_region: npt.NDArray[np.int64],
        num_images: int,
        *,
        num_resamples: int,
        confidence: float,
        seed: int,
    ) -> None:
        self._image_of_region = image_of_region
        self._num_images = num_images
        self._num_resamples = num_resamples
        self._tails = (1 - confidence) / 2
        self._seed = seed

    def intervals(self, measures: Sequence[Measure], within: npt.NDArray[np.bool_]) -> list[tuple[float, float] | None]:
        """Percentile intervals of measures over some of the regions, bool [N].

        None where fewer than two images have a region that counts. Draws in which nothing counts are left out.
        """
        # Measures that share their statistics (BLEU's four) are summed once.
        sums = {id(measure.statistics): self._sums(measure.statistics, within) for measure in measures}
        ends = dict(zip(sums, np.cumsum([part.shape[1] for part in sums.values()]), strict=True))
        drawn = self._drawn(np.concatenate(list(sums.values()), axis=1)) if measures else np.empty(0)
        intervals: list[tuple[float, float] | None] = []
        for measure in measures:
            of_images = sums[id(measure.statistics)]
            if np.count_nonzero(of_images.any(axis=1)) < 2:
                intervals.append(None)
                continue
            end = ends[id(measure.statistics)]
            values = measure.figure(drawn[:, end - of_images.shape[1] : end])
            low, high = np.nanquantile(values, [self._tails, 1 - self._tails])
            intervals.append((float(low), float(high)))
        return intervals

    def _sums(self, statistics: Floats, within: npt.NDArray[np.bool_]) -> Floats:
        sums = np.zeros((self._num_images, statistics.shape[1]))
        np.add.at(sums, self._image_of_region[within], statistics[within])
        return sums

    def _drawn(self, sums: Floats) -> Floats:
        """Sums of the drawn images, [resamples, K], from those of all images [I, K]."""
        return np.concatenate([weights @ sums for weights in self._weights()])

    def _weights(self) -> Iterator[Floats]:
        """How often each image was drawn, [resamples, I], some of the resamples at a time."""
        rng = np.random.default_rng(self._seed)
        num_images = self._num_images
        at_once = max(1, _WEIGHTS_AT_ONCE // num_images)
        for start in range(0, self._num_resamples, at_once):
            size = min(at_once, self._num_resamples - start)
            images = rng.integers(num_images, size=(size, num_images)) + num_images * np.arange(size)[:, None]
            counts = np.bincount(images.ravel(), minlength=size * num_images)
            yield counts.reshape(size, num_images).astype(np.float64)
