"""Words of messages."""

import pytest

from ureca.wording import duration, first_line, quantity


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2345, ("region",), "2,345 regions"),
        (1, ("image has", "images have"), "1 image has"),
        (2, ("image has", "images have"), "2 images have"),
    ],
)
def test_quantity_with_any_number_agrees_with_its_noun(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert quantity(number, *nouns) == text


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [
        (0, 0, "0s"),
        (9.4, 0, "9s"),
        (9.44, 1, "9.4s"),
        (59.6, 0, "1m00s"),
        (185, 1, "3m05s"),
        (3599.7, 0, "1h00m"),
        (3720, 0, "1h02m"),
    ],
)
def test_duration_of_seconds_has_at_most_two_parts(seconds: float, decimals: int, text: str) -> None:
    assert duration(seconds, decimals=decimals) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("wrong\nin detail"), "wrong"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_first_line_of_an_error_without_a_message_is_its_type(error: Exception, text: str) -> None:
    assert first_line(error) == text
