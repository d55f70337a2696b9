"""Simulated time, and places that work waits for."""

import heapq
import math
from collections import deque
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """Does what is due, in the order of time, and of asking where times are equal.

    Attributes:
        now_s: seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._num_asked = 0

    def after(self, delay_s: float, action: Action) -> None:
        """Do something ``delay_s`` seconds, at least 0, from now."""
        self._num_asked += 1
        heapq.heappush(self._due, (self.now_s + delay_s, self._num_asked, action))

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            self.now_s, _, action = heapq.heappop(self._due)
            action()


class Places:
    """So many places, taken in the order of asking.

    Args:
        clock: that they go by.
        capacity: places; ``math.inf`` lets nobody wait.

    Attributes:
        num_taken: now.
        most_taken: ever.
    """

    def __init__(self, clock: Clock, capacity: float = math.inf) -> None:
        self._clock = clock
        self.capacity = capacity
        self.num_taken = self.most_taken = 0
        self._busy_s = 0.0
        self._changed_s = 0.0
        self._waiting: deque[Action] = deque()

    @property
    def busy_s(self) -> float:
        """Seconds that places were taken so far, added over the places."""
        return self._busy_s + self.num_taken * (self._clock.now_s - self._changed_s)

    def take(self, action: Action) -> None:
        """Do something once a place is free; it is taken until ``give_back``."""
        if self.num_taken < self.capacity:
            self._count(1)
            action()
        else:
            self._waiting.append(action)

    def give_back(self) -> None:
        """Free a place; who waits longest takes it."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._count(-1)

    def use(self, seconds: float, then: Action) -> None:
        """Take a place for some seconds, and do something afterwards."""

        def end() -> None:
            self.give_back()
            then()

        self.take(lambda: self._clock.after(seconds, end))

    def _count(self, change: int) -> None:
        self._busy_s = self.busy_s
        self._changed_s = self._clock.now_s
        self.num_taken += change
        self.most_taken = max(self.most_taken, self.num_taken)
