"""Scenes for tests: rendered ones from hypothesis, and one written by hand."""

from functools import lru_cache

from hypothesis import strategies as st

from ureca.scenes.composition import SPLITS, Split
from ureca.scenes.rendering import Rendering, render
from ureca.scenes.scene import Scene, SceneRegion


@lru_cache(maxsize=256)
def rendering(split: Split, seed: int, number: int, width_px: int, height_px: int) -> Rendering:
    """``render``, once for each scene."""
    return render(split, seed, number, width_px, height_px)


renderings = st.builds(
    rendering,
    st.sampled_from(SPLITS),
    st.integers(0, 2**40),
    st.integers(0, 2**20),
    st.sampled_from([112, 150, 200]),
    st.sampled_from([112, 150, 200]),
)


def region(id: int, kind: str, colour: str, x: float, y: float, *, parent_id: int = -1, **more: object) -> SceneRegion:
    """A plain region with its centre at x, y."""
    values: dict[str, object] = {"pattern": "plain", "size": None, "hides": ()} | more
    return SceneRegion(id=id, parent_id=parent_id, kind=kind, colour=colour, centre_xy_px=(x, y), **values)  # type: ignore[arg-type]


STREET = Scene(
    100,
    100,
    (
        region(0, "sky", "blue", 50, 20),
        region(1, "ground", "green", 50, 70),
        region(2, "house", "red", 20, 50, size="large"),
        region(3, "wall", "red", 20, 55, parent_id=2),
        region(4, "window", "blue", 15, 52, parent_id=3),
        region(5, "window", "blue", 25, 52, parent_id=3),
        region(6, "house", "red", 80, 50, size="small", pattern="striped"),
        region(7, "wall", "red", 80, 55, parent_id=6, pattern="striped"),
        region(8, "window", "blue", 80, 52, parent_id=7),
        region(9, "car", "grey", 40, 80, size="small", hides=(2,)),
        region(10, "wheel", "black", 35, 90, parent_id=9),
        region(11, "wheel", "black", 45, 90, parent_id=9),
        region(12, "hub", "white", 45, 90, parent_id=11),
        region(13, "car", "grey", 82, 90, size="large"),
        region(14, "wheel", "black", 75, 95, parent_id=13),
    ),
)
"""Two red houses, one of them striped and small, and two grey cars, of which the small one stands before a house."""
