"""How many requests an endpoint takes at a time, found out by asking (AIMD, as TCP does)."""

_FIRST = 4


class AdaptiveLimit:
    """Grows while requests are answered, is halved when the endpoint has too many.

    Until the first overload each answer adds one, which doubles the limit in a round trip; from then on a round trip
    adds one. It stays within 1 and the maximum.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._value = float(min(_FIRST, maximum))
        self._was_overloaded = False
        self._num_sent_at_decrease = 0

    @property
    def value(self) -> int:
        """Requests that may be in flight."""
        return int(self._value)

    def answered(self, num_in_flight: int) -> None:
        """Count an answer to a request that made it so many in flight.

        An answer to one of few says nothing about many: below half of the limit, it does not grow.
        """
        if 2 * num_in_flight >= self.value:
            step = 1 / self._value if self._was_overloaded else 1
            self._value = min(float(self._maximum), self._value + step)

    def overloaded(self, number: int, num_sent: int) -> None:
        """Halve the limit, once for all the requests that were in flight under it.

        Args:
            number: of the request that met the overload, counted from 1 as they were sent.
            num_sent: requests sent until now.
        """
        if number > self._num_sent_at_decrease:
            self._value = max(1.0, self._value / 2)
            self._was_overloaded = True
            self._num_sent_at_decrease = num_sent
