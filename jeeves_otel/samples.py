# SPDX-License-Identifier: Apache-2.0
"""Read promtool's notation of samples.

In: ``0+2x3 _x2 stale 7``. Out: one value per step, None where there is no sample.
"""

from __future__ import annotations

import re

_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"
_PART = re.compile(rf"({_NUMBER}|_|stale)(?:([+-]{_NUMBER.removeprefix('-?')}))?(?:x(\d+))?")


def samples(values: str) -> list[float | None]:
    """Return what the notation *values* stands for, one entry per step; None where there is no sample.

    Raises:
        ValueError: It is not that notation, or one of native histograms.

    Source: Prometheus 3, unit testing rules, series.
    """
    read: list[float | None] = []
    for word in values.split():
        part = _PART.fullmatch(word)
        if part is None:
            raise ValueError(f"`{word}` is not promtool's notation")
        start, step, times = part.groups()
        count = int(times or 0) + (start != "_" or not times)
        if start in {"_", "stale"}:
            read += [None] * count
        else:
            read += [float(start) + float(step or 0) * number for number in range(count)]
    return read
