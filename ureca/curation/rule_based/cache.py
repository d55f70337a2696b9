"""A cache of values computed from objects that cannot be hashed."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class IdentityCache(Generic[Key, Value]):
    """Computes a value once per object; an entry lives as long as its object. Thread-safe.

    Args:
        compute: computes the value of an object.
    """

    def __init__(self, compute: Callable[[Key], Value]) -> None:
        self._compute = compute
        self._entries: dict[int, tuple[weakref.ref[Key], Value]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: Key) -> Value:
        """Return the value of an object; compute it on a thread if it is not cached, so that the event loop goes on."""
        entry = self._entries.get(id(key))
        return entry[1] if entry is not None else await asyncio.to_thread(self.get_blocking, key)

    def get_blocking(self, key: Key) -> Value:
        """Return the value of an object; compute it on this thread if it is not cached."""
        with self._lock:
            identity = id(key)
            if identity not in self._entries:
                value = self._compute(key)
                reference = weakref.ref(key, lambda _: self._entries.pop(identity, None))
                self._entries[identity] = reference, value
            return self._entries[identity][1]
