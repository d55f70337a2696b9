import numpy as np
import pytest

from ureca.curation.rule_based.colours import fits_brightness, fits_colour, measure_colours, name_colours, to_oklab
from ureca.curation.rule_based.measurement import LOCATIONS, locate, within_it
from ureca.curation.rule_based.shapes import NOUNS, SHAPES, SIZES, TEXTURES, measure_shape, measure_texture
from ureca.curation.rule_based.vocabulary import enumeration, number, ordinal, plural, sentence, with_article


def _flat(*codes):
    return np.array([list(bytes.fromhex(code)) for code in codes], np.uint8)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("000000", "black"),
        ("ffffff", "white"),
        ("808080", "grey"),
        ("404040", "dark grey"),
        ("c8c8c8", "light grey"),
        ("e01010", "red"),
        ("800000", "dark red"),
        ("ff8c00", "orange"),
        ("8b4513", "brown"),
        ("4b3621", "dark brown"),
        ("d2b48c", "beige"),
        ("ffd700", "yellow"),
        ("32a032", "green"),
        ("013220", "dark green"),
        ("98ff98", "light green"),
        ("20a0a0", "turquoise"),
        ("2050d0", "blue"),
        ("000070", "dark blue"),
        ("a8d8f0", "light blue"),
        ("a5e7fe", "light blue"),
        ("4e5e92", "blue"),
        ("800080", "purple"),
        ("ff69b4", "pink"),
        ("cdd8cd", "light grey"),
        ("30252c", "black"),
        ("759dd0", "blue"),  # a clear sky
        ("141b2a", "dark blue"),  # a wall in the shade
        ("1c2610", "dark green"),  # leaves in the shade
        ("241b12", "black"),  # a stove in warm light
        ("d85428", "orange"),
        ("a1637a", "dark pink"),
    ],
)
def test_colour_plain_has_its_name(code, name):
    colours = measure_colours(_flat(code))
    assert name_colours(colours) == (name,)
    assert fits_colour(name, colours)


def test_oklab_of_primaries_has_the_published_values():
    assert to_oklab(np.eye(3)) == pytest.approx(
        np.array([[0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312]]), abs=1e-3
    )


def test_colour_second_is_named_from_a_quarter_on():
    mostly_red = measure_colours(_flat(*["e01010"] * 8, *["2050d0"] * 2))
    also_blue = measure_colours(_flat(*["e01010"] * 7, *["2050d0"] * 3))
    assert name_colours(mostly_red) == ("red",)
    assert name_colours(also_blue) == ("red", "blue")


def test_colour_shade_is_no_second_colour():
    # Both can be called brown; only one is nearest to it.
    colours = measure_colours(_flat(*["5c3317"] * 6, *["2c1c12"] * 4))
    assert len(name_colours(colours)) == 1


def test_colour_vivid_one_beside_grey_is_named_below_a_quarter():
    silver_and_blue = measure_colours(_flat(*["8c8c90"] * 8, *["3c468c"] * 2))
    grey_and_faintly_blue = measure_colours(_flat(*["8c8c90"] * 8, *["80889c"] * 2))
    assert name_colours(silver_and_blue) == ("grey", "blue")
    assert fits_colour("blue", silver_and_blue)
    assert name_colours(grey_and_faintly_blue) == ("grey",)
    assert not fits_colour("red", silver_and_blue)


def test_colour_vivid_one_replaces_a_second_shade_of_grey():
    scooter = measure_colours(_flat(*["101010"] * 5, *["404040"] * 3, *["d01818"] * 2))
    assert name_colours(scooter) == ("black", "red")


def test_colour_near_two_families_is_one_colour():
    # All of it can be called black, though half is nearest to brown.
    assert len(name_colours(measure_colours(_flat(*["2a1301"] * 5, *["1e0d02"] * 5)))) == 1


def test_colour_many_colours_are_multicoloured():
    colours = measure_colours(_flat("e01010", "2050d0", "32a032", "ffd700", "ffffff"))
    assert name_colours(colours) == ("multicoloured",)
    assert not fits_colour("multicoloured", measure_colours(_flat("e01010")))


def test_colour_other_words_do_not_fit():
    green = measure_colours(_flat("32a032"))
    assert not fits_colour("red", green)
    assert not fits_colour("light green", measure_colours(_flat("013220")))
    assert fits_brightness("dark", measure_colours(_flat("101010")))
    assert not fits_brightness("bright", measure_colours(_flat("101010")))
    assert fits_brightness("bright", measure_colours(_flat("f0f0f0")))


def _shape(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return measure_shape(box, int(mask.sum()), float(mask.mean()))


@pytest.mark.parametrize("radius", [4, 8, 20, 60])
def test_shape_disc_is_round(canvas, radius):
    shape = _shape(canvas.ellipse(150, 100, radius))
    assert SHAPES.name(shape) == "round"
    assert not SHAPES.fits("rectangular", shape)


def test_shape_ellipse_is_oval(canvas):
    shape = _shape(canvas.ellipse(150, 100, 50, 30))
    assert SHAPES.name(shape) == "oval"
    assert not SHAPES.fits("horizontal", shape)


@pytest.mark.parametrize("size", [(40, 40), (60, 40), (6, 6)])
def test_shape_rectangle_is_rectangular(canvas, size):
    shape = _shape(canvas.rectangle(20, 20, 20 + size[0], 20 + size[1]))
    assert SHAPES.name(shape) == "rectangular"
    assert not SHAPES.fits("round", shape)


@pytest.mark.parametrize(("angle", "word"), [(0, "horizontal"), (90, "vertical"), (45, "slanting"), (135, "slanting")])
def test_shape_bar_is_a_strip_with_its_direction(canvas, angle, word):
    shape = _shape(canvas.bar(150, 100, 120, 25, angle))
    assert NOUNS.name(shape) == "strip"
    assert SHAPES.name(shape) == word
    assert [other for other in ("horizontal", "vertical", "slanting") if SHAPES.fits(other, shape)] == [word]


def test_shape_thin_bar_is_a_line(canvas):
    shape = _shape(canvas.bar(150, 100, 150, 4, 30))
    assert NOUNS.name(shape) == "line"
    assert not NOUNS.fits("ring", shape)


def test_shape_with_a_central_hole_is_a_ring(canvas):
    ring = _shape(canvas.ellipse(150, 100, 50) & ~canvas.ellipse(150, 100, 30))
    off_centre = _shape(canvas.ellipse(150, 100, 50) & ~canvas.ellipse(130, 100, 12))
    assert NOUNS.name(ring) == "ring"
    assert SHAPES.name(ring) is None
    assert NOUNS.name(off_centre) == "area"


def test_shape_star_is_irregular(canvas):
    star = canvas.bar(150, 100, 120, 12, 0) | canvas.bar(150, 100, 120, 12, 90) | canvas.bar(150, 100, 120, 12, 45)
    assert SHAPES.name(_shape(star)) == "irregular"
    assert not SHAPES.fits("irregular", _shape(canvas.ellipse(150, 100, 40)))


def test_shape_separate_pieces_are_a_cluster(canvas):
    pieces = canvas.ellipse(50, 50, 10) | canvas.ellipse(150, 150, 12) | canvas.ellipse(250, 60, 11)
    assert NOUNS.name(_shape(pieces)) == "cluster"


def test_shape_few_pixels_are_a_dot(canvas):
    shape = _shape(canvas.rectangle(7, 7, 9, 9))
    assert (NOUNS.name(shape), SHAPES.name(shape)) == ("dot", None)


@pytest.mark.parametrize(("side", "noun", "size"), [(5, "patch", "tiny"), (20, "patch", "small"), (50, "patch", None)])
def test_size_small_has_a_word(canvas, side, noun, size):
    shape = _shape(canvas.rectangle(10, 10, 10 + side, 10 + side))
    assert (NOUNS.name(shape), SIZES.name(shape)) == (noun, size)


def test_size_large_has_a_word(canvas):
    area, large = (_shape(canvas.rectangle(10, 10, 110, bottom)) for bottom in (90, 190))
    assert (NOUNS.name(area), SIZES.name(area)) == ("area", None)
    assert SIZES.name(large) == "large"
    assert not SIZES.fits("small", area)
    assert not SIZES.fits("large", _shape(canvas.rectangle(10, 10, 60, 60)))


def _ripple(angle_deg, wavelength_px=12):
    y, x = np.mgrid[:100, :100]
    angle = np.radians(angle_deg)
    return 0.5 + 0.25 * np.sign(np.sin((x * np.sin(angle) + y * np.cos(angle)) * 2 * np.pi / wavelength_px + 0.1))


@pytest.mark.parametrize(
    ("angle", "word"),
    [
        (0, "horizontally striped"),
        (90, "vertically striped"),
        (45, "diagonally striped"),
        (135, "diagonally striped"),
    ],
)
def test_texture_stripes_have_a_direction(angle, word):
    texture = measure_texture(_ripple(angle), np.ones((100, 100), bool))
    assert TEXTURES.name(texture) == word
    assert [other for other in TEXTURES.words if "striped" in other and TEXTURES.fits(other, texture)] == [word]


def test_shape_of_a_large_part_of_the_image_is_no_strip(canvas):
    ground = canvas.rectangle(0, 110, 300, 200)
    assert NOUNS.name(measure_shape(ground, int(ground.sum()), 0.45)) == "area"
    assert NOUNS.name(measure_shape(ground, int(ground.sum()), 0.2)) == "strip"


def test_texture_edge_or_slope_is_no_stripe():
    step = np.where(np.arange(100) < 50, 0.2, 0.8) * np.ones((100, 1))
    slope = np.linspace(0.2, 0.8, 100) * np.ones((100, 1))
    for lightness in (step, slope):
        name = TEXTURES.name(measure_texture(lightness, np.ones((100, 100), bool)))
        assert name is None or "striped" not in name


def test_texture_flat_noise_and_blotches_have_words():
    from scipy import ndimage

    noise = np.random.default_rng(0).normal(size=(100, 100))
    blotches = ndimage.gaussian_filter(noise, 2.5)
    inside = np.ones((100, 100), bool)
    smooth = measure_texture(np.full((100, 100), 0.5), inside)
    fine = measure_texture(0.5 + 0.12 * noise, inside)
    mottled = measure_texture(0.5 + 0.2 * blotches / blotches.std(), inside)
    assert [TEXTURES.name(texture) for texture in (smooth, fine, mottled)] == ["smooth", "finely textured", "mottled"]
    assert not TEXTURES.fits("smooth", fine)
    assert not TEXTURES.fits("finely textured", smooth)
    assert not TEXTURES.fits("mottled", smooth)


def test_texture_ignores_pixels_outside_the_mask():
    lightness = np.full((100, 100), 0.5)
    lightness[:, 50:] = np.random.default_rng(0).random((100, 50))
    assert TEXTURES.name(measure_texture(lightness, np.arange(100)[None, :] < np.full((100, 1), 50))) == "smooth"


def test_texture_few_pixels_have_none():
    assert TEXTURES.name(measure_texture(np.full((5, 5), 0.5), np.ones((5, 5), bool))) is None


def _location(left, top, right, bottom, *, in_image=True):
    covered = (right - left) * (bottom - top) / (300 * 200)
    centre = ((left + right) / 2, (top + bottom) / 2)
    return locate((left, top, right, bottom), centre, (0, 0, 300, 200), covered=covered, in_image=in_image)


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0, 0, 300, 200), "covering nearly all of"),
        ((10, 10, 270, 180), "covering most of"),
        ((0, 150, 300, 200), "along the bottom edge of"),
        ((0, 0, 300, 50), "along the top edge of"),
        ((0, 0, 50, 200), "along the left edge of"),
        ((250, 0, 300, 200), "along the right edge of"),
        ((0, 0, 40, 40), "in the upper left corner of"),
        ((260, 0, 300, 40), "in the upper right corner of"),
        ((0, 160, 40, 200), "in the lower left corner of"),
        ((260, 160, 300, 200), "in the lower right corner of"),
        ((10, 10, 50, 50), "in the upper left of"),
        ((130, 10, 170, 50), "at the top of"),
        ((130, 45, 170, 85), "in the upper part of"),
        ((130, 115, 170, 155), "in the lower part of"),
        ((250, 10, 290, 50), "in the upper right of"),
        ((10, 80, 50, 120), "on the left side of"),
        ((130, 80, 170, 120), "in the centre of"),
        ((250, 80, 290, 120), "on the right side of"),
        ((10, 150, 50, 190), "in the lower left of"),
        ((130, 150, 170, 190), "at the bottom of"),
        ((250, 150, 290, 190), "in the lower right of"),
    ],
)
def test_location_of_a_box_has_its_word(box, place):
    assert LOCATIONS.name(_location(*box)) == place
    assert LOCATIONS.fits(place, _location(*box))


def test_location_frame_reaches_all_four_edges():
    frame = locate((0, 0, 300, 200), (150, 100), (0, 0, 300, 200), covered=0.3, in_image=True)
    assert LOCATIONS.name(frame) == "reaching all four edges of"


def test_location_corner_and_edge_of_a_parent_are_not_those_of_the_image():
    assert LOCATIONS.name(_location(0, 0, 40, 40, in_image=False)) == "in the upper left of"


def test_location_opposite_words_do_not_fit():
    upper_left = _location(10, 10, 50, 50)
    for wrong in ("in the lower right of", "in the centre of", "along the bottom edge of", "covering most of"):
        assert not LOCATIONS.fits(wrong, upper_left)


def test_english_articles_numbers_and_lists():
    assert [with_article(word) for word in ("red disc", "orange disc", "irregular patch")] == [
        "a red disc",
        "an orange disc",
        "an irregular patch",
    ]
    assert [ordinal(value) for value in (1, 12, 13, 21, 22, 23, 111)] == [
        "first",
        "twelfth",
        "13th",
        "21st",
        "22nd",
        "23rd",
        "111th",
    ]
    assert [number(value) for value in (2, 12, 13)] == ["two", "twelve", "13"]
    assert [plural(noun) for noun in ("patch", "strip")] == ["patches", "strips"]
    assert [enumeration(items) for items in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert sentence("a red disc") == "A red disc."
    assert within_it("in the centre of") == "in its centre"
    assert within_it("on the left side of") == "on its left side"
    assert within_it("covering most of") == "covering most of it"
