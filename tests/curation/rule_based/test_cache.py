"""The cache of measurements: one computation per object, and no entry without its object."""

import asyncio

from ureca.curation.rule_based.cache import IdentityCache


class Unhashable:
    """An object like an image under curation."""

    __hash__ = None  # type: ignore[assignment]


def test_cache_computes_the_value_of_an_object_once():
    computed = []
    cache = IdentityCache(lambda key: computed.append(key) or len(computed))
    first, second = Unhashable(), Unhashable()

    async def get():
        return await asyncio.gather(*(cache.get(key) for key in (first, second, first, first)))

    one, two, *again = asyncio.run(get())
    assert {one, two} == {1, 2}
    assert again == [one, one]
    assert len(computed) == 2


def test_cache_entry_is_removed_with_its_object():
    cache = IdentityCache(lambda key: 1)
    key, other = Unhashable(), Unhashable()
    asyncio.run(cache.get(key))
    asyncio.run(cache.get(other))
    del key
    assert len(cache) == 1
    assert asyncio.run(cache.get(other)) == 1
    del other
    assert len(cache) == 0
