"""Quantiles in bounded memory: close to the true ones, whatever the values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.sketch import Sketch

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


@given(values, st.floats(0, 1))
def test_a_quantile_is_within_one_percent_of_the_true_value(given_values: list[float], fraction: float) -> None:
    sketch = Sketch()
    for value in given_values:
        sketch.add(value)
    true = sorted(given_values)[max(math.ceil(fraction * len(given_values)), 1) - 1]
    assert sketch.quantile(fraction) == pytest.approx(true, rel=0.01)


@given(values)
def test_quantiles_never_fall_and_every_value_is_counted(given_values: list[float]) -> None:
    sketch = Sketch()
    for value in given_values:
        sketch.add(value)
    quantiles = [sketch.quantile(tenth / 10) or 0.0 for tenth in range(11)]
    assert quantiles == sorted(quantiles)
    assert sketch.count == len(given_values)


def test_without_values_there_is_no_quantile() -> None:
    assert Sketch().quantile(0.5) is None


def test_zero_counts_as_the_least_value() -> None:
    sketch = Sketch()
    sketch.add(0.0)
    assert sketch.quantile(1.0) == pytest.approx(1e-6, rel=0.02)


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    sketch = Sketch()
    for n in range(100_000):
        sketch.add(0.001 + n % 1_000 / 100)
    assert len(vars(sketch)["_counts"]) < 1_200
