# SPDX-License-Identifier: Apache-2.0
"""What promtool's notation of samples stands for."""

from __future__ import annotations

import pytest

from jeeves_otel.generators.promtool import counter, restarted
from jeeves_otel.samples import samples


@pytest.mark.parametrize(
    ("notation", "expected"),
    [
        ("5", [5.0]),
        ("5x2", [5.0, 5.0, 5.0]),
        ("1+2x3", [1.0, 3.0, 5.0, 7.0]),
        ("4-1.5x2", [4.0, 2.5, 1.0]),
        ("_x2 1 stale _", [None, None, 1.0, None, None]),
        ("1e3", [1000.0]),
    ],
)
def test_each_form_is_read_as_promtool_does(notation: str, expected: list[float | None]) -> None:
    """`x3` is three more, but of what is missing it is three in all."""
    assert expected == samples(notation)


@pytest.mark.parametrize("notation", ["five", "5x", "{{schema:1}}", "0+-1x3"])
def test_another_notation_is_refused(notation: str) -> None:
    """Rather than played as something else."""
    with pytest.raises(ValueError, match="is not promtool's notation"):
        samples(notation)


def test_a_counter_that_restarts_grows_as_it_would_have() -> None:
    """From 0 on, in the step of the restart; what is missing stays missing."""
    assert "0 2 0 2 4" == restarted("0+2x4", 2)
    assert "0 2 _ 0 2" == restarted("0+2x1 _ 6+2x1", 2)
    assert "0+2x4" == restarted("0+2x4", 9)


def test_what_is_written_of_a_counter_is_read_back() -> None:
    """Parts go on where the one before ended, but for a restart."""
    notation = counter([(3, 2.0, False), (2, 0.0, False), (2, 0.25, True)])

    assert [0.0, 2.0, 4.0, 4.0, 4.0, 0.0, 0.25] == samples(notation)
