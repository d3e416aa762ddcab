# SPDX-License-Identifier: Apache-2.0
"""Laws of bounds: never more than n + 1 values, and a name once kept is kept."""

from __future__ import annotations

from hypothesis import given, strategies as st

from jeeves_otel.cardinality import Bound, Bounds
from jeeves_otel.labels import label_function
from jeeves_otel.registry import OTHER, load
from tests.property import LAWS

REGISTRY = load(("jeeves",))
_values = st.one_of(
    st.text(max_size=3), st.integers(-5, 5), st.sampled_from([0.5, True, "other", "declared", ("a", "b")])
)


@LAWS
@given(st.integers(0, 5), st.lists(_values), st.sets(st.sampled_from(["declared", "x", 1])))
def test_never_more_than_the_limit_and_other(limit: int, values: list[object], declared: set[object]) -> None:
    """However many values come, n of them keep their names, and the declared ones, and `other` stands for the rest."""
    bound = Bound("a", limit, declared)
    kept = {bound.admit(value) for value in values}

    assert len(kept - declared - {OTHER}) <= limit
    assert kept <= {*values, OTHER}


@LAWS
@given(st.integers(0, 5), st.lists(_values))
def test_admitted_value_keeps_its_name(limit: int, values: list[object]) -> None:
    """What a value was called first, it is called always."""
    bound = Bound("a", limit)
    first: dict[object, object] = {}
    for value in values:
        kept = bound.admit(value)

        assert kept == first.setdefault(value, kept)


@LAWS
@given(st.integers(0, 5), st.lists(_values), st.sets(_values))
def test_declared_values_always_keep_their_names(limit: int, values: list[object], declared: set[object]) -> None:
    """Even after a flood."""
    bound = Bound("a", limit, declared)
    for value in values:
        bound.admit(value)

    assert [*declared] == [bound.admit(value) for value in declared]


@LAWS
@given(st.integers(0, 3), st.lists(_values))
def test_every_loss_of_a_name_is_counted(limit: int, values: list[object]) -> None:
    """The count of overflowed measurements is the number of answers that were not the value itself."""
    bound = Bound("a", limit)
    lost = sum(bound.admit(value) != value for value in values)

    assert lost == bound.overflowed


@LAWS
@given(st.sampled_from(sorted(REGISTRY.metrics)), st.data())
def test_values_of_the_contract_survive_any_flood(name: str, data: st.DataObject) -> None:
    """Whatever came before, an attribute value that gives a promised label value still gives it."""
    bounds = Bounds(REGISTRY)
    for label in REGISTRY.metrics[name].labels:
        keys = [key for template in label.templates for key in template.keys if len(template.parts) == 1]
        for key, bound in bounds.of(keys):
            flood = data.draw(st.lists(st.text(max_size=2), max_size=10))
            for value in [*flood, *range(bound._room)]:
                bound.admit(value)
            compute = label_function(label, REGISTRY)
            for value in (*label.values, *label.known, *label.value_map):
                assert compute({key: value}) == compute({key: bound.admit(value)})
