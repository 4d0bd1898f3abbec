"""Quantiles of a stream in small, bounded memory: counts in buckets whose bounds grow by 0.9 %. Pure."""

import math

_GROWTH = math.log(1.009)
_LEAST = 1e-6


class Sketch:
    """Any quantile of the values added, within 1 % of the true value (rounding to three digits included). Values are 0 or more."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        """Counts one value."""
        bucket = math.floor(math.log(max(value, _LEAST)) / _GROWTH)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1

    def quantile(self, fraction: float) -> float | None:
        """The value that `fraction` (0 to 1) of the values do not exceed; None where there are none."""
        rank = math.ceil(fraction * self.count)
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= max(rank, 1):
                return float(f"{math.exp((bucket + 0.5) * _GROWTH):.3g}")
        return None
