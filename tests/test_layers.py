"""Hidden-state variability (fixtures, invariances, edges) and what choices of layers mean: exact numbers, no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignstar.errors import FailedError, OptionError
from alignstar.layers import variability as module
from alignstar.layers.choice import Band, band_of, checked, may_cut, needs_star
from alignstar.layers.variability import star_of, variability

APART = np.array([[0, 0], [0, 2], [4, 0], [4, 2]], dtype=float), [0, 0, 1, 1]
THREE = np.array([[0, 0], [2, 0], [4, 0], [6, 0], [0, 3], [2, 3]], dtype=float), [0, 0, 1, 1, 2, 2]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def drawn(seed: int = 0, *, classes: int = 3, d: int = 5, n: int = 40) -> tuple[Any, Any]:
    """States around random class means, in classes of unequal sizes."""
    rng = generator(seed)
    labels = np.sort(rng.integers(0, classes, n))
    labels[:classes] = np.arange(classes)
    return rng.normal(size=(classes, d))[labels] * 2 + rng.normal(size=(n, d)), labels


def by_pinv(states: Any, labels: Any) -> float:
    """The paper's formula as it stands, with d x d matrices."""
    groups = [states[np.asarray(labels) == y] for y in np.unique(labels)]
    means = np.array([group.mean(axis=0) for group in groups])
    centre = means.mean(axis=0)
    within = sum((g - g.mean(axis=0)).T @ (g - g.mean(axis=0)) / len(g) for g in groups) / len(groups)
    between = sum(np.outer(m - centre, m - centre) for m in means) / len(groups)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-12))) / len(groups)


@pytest.mark.parametrize(("fixture", "nu"), [(APART, 0.0), (THREE, 0.125)])
def test_fixtures(fixture: tuple[Any, list[int]], nu: float):
    assert variability(*fixture) == pytest.approx(nu, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("classes", "d"), [(2, 5), (3, 2), (4, 9), (7, 3)])
def test_it_is_the_papers_formula(seed: int, classes: int, d: int):
    states, labels = drawn(seed, classes=classes, d=d)
    assert variability(states, labels) == pytest.approx(by_pinv(states, labels), rel=1e-9)


def test_two_classes_have_a_closed_form():
    states, labels = drawn(classes=2)
    groups = [states[labels == y] for y in (0, 1)]
    delta = groups[0].mean(axis=0) - groups[1].mean(axis=0)
    within = sum(np.cov(g.T, bias=True) for g in groups) / 2
    assert variability(states, labels) == pytest.approx(2 * delta @ within @ delta / (delta @ delta) ** 2, rel=1e-12)


@pytest.mark.parametrize("far", [1.0, 1e8])
def test_a_translation_changes_nothing(far: float):
    states, labels = drawn()
    assert variability(states + far, labels) == pytest.approx(variability(states, labels), rel=1e-6)


def test_a_rotation_and_one_scale_change_nothing_and_a_linear_map_does():
    states, labels = drawn()
    turn = np.linalg.qr(generator(1).normal(size=(5, 5)))[0]
    nu = variability(states, labels)
    assert variability(states @ turn, labels) == pytest.approx(nu, rel=1e-12)
    assert variability(states * 1e-7, labels) == pytest.approx(nu, rel=1e-12)
    assert variability(states * np.array([1, 1, 1, 1, 9.0]), labels) != pytest.approx(nu, rel=0.01)


def test_order_and_names_of_classes_change_nothing():
    states, labels = drawn()
    order = generator(2).permutation(len(labels))
    assert variability(states[order], labels[order]) == pytest.approx(variability(states, labels), rel=1e-12)
    assert variability(states, 7 - 3 * labels) == pytest.approx(variability(states, labels), rel=1e-12)


@pytest.mark.parametrize("doubled", [0, 1, 2])
def test_doubling_a_class_changes_nothing(doubled: int):
    states, labels = drawn()
    more, again = states[labels == doubled], labels[labels == doubled]
    assert variability(np.vstack([states, more, more]), np.concatenate([labels, again, again])) == pytest.approx(
        variability(states, labels), rel=1e-12
    )


def test_noise_within_classes_counts_by_its_square():
    rng = generator()
    labels = np.repeat([0, 1, 2], 20)
    means, noise = rng.normal(size=(3, 4))[labels], rng.normal(size=(60, 4))
    noise -= np.array([noise[labels == y].mean(axis=0) for y in range(3)])[labels]
    assert variability(means + 3 * noise, labels) == pytest.approx(9 * variability(means + noise, labels), rel=1e-12)


def test_gaussians_have_half_the_squared_ratio_of_noise_to_distance():
    rng, n, m, s = generator(), 50_000, 1.5, 0.7
    labels = np.repeat([0, 1], n)
    states = rng.normal(size=(2 * n, 3)) * s
    states[:, 0] += np.where(labels == 0, m, -m)
    # Relative standard errors: of the variance sqrt(1/n), of the squared distance 2 s sqrt(2/n) / (2m).
    error = 4 * np.hypot((1 / n) ** 0.5, s * (2 / n) ** 0.5 / m)
    assert variability(states, labels) == pytest.approx(s**2 / (2 * m**2), rel=float(error))


def test_means_on_a_line_have_one_direction():
    rng = generator()
    labels = np.repeat([0, 1, 2], 4)
    noise = rng.normal(size=(12, 3))
    noise -= np.array([noise[labels == y].mean(axis=0) for y in range(3)])[labels]
    states = np.outer(labels, [0.1, 0.3, 0.7]) + noise  # three collinear means: rounding makes a second direction
    along = noise @ [0.1, 0.3, 0.7] / np.linalg.norm([0.1, 0.3, 0.7])
    between = 0.59 * 2 / 3  # |direction|^2 times the variance of 0, 1, 2
    within = np.mean([np.mean(along[labels == y] ** 2) for y in range(3)])
    assert variability(states, labels) == pytest.approx(within / between / 3, rel=1e-9)


def test_edges():
    states, labels = drawn(n=8, d=50, classes=4)
    assert np.isfinite(variability(states, labels))  # fewer states than dimensions
    assert variability(np.array([[0.0], [1.0], [3.0]]), [0, 0, 1]) == pytest.approx(2 * 0.125 / 2.5**2)  # 1/2 (1/4 + 0)
    assert variability(states, [0] * 8) == np.inf
    assert variability(np.array([[0.1, 2], [0.3, 1], [0.3, 1], [0.1, 2]]), [0, 0, 1, 1]) == np.inf
    assert variability(np.ones((4, 2)), [0, 0, 1, 1]) == np.inf
    states[3, 7] = np.nan
    with pytest.raises(FailedError, match="not finite"):
        variability(states, labels)
    for count, given in ((0, []), (8, labels[:7])):
        with pytest.raises(OptionError, match="one label per state"):
            variability(states[:count], given)


def test_states_may_lie_in_a_file_and_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    states, labels = drawn()
    stored = np.memmap(tmp_path / "states", dtype=np.float32, shape=states.shape, mode="w+")
    stored[:] = states
    whole = variability(stored, labels)
    monkeypatch.setattr(module, "BLOCK", 3)
    assert variability(stored, labels) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(variability(states, labels), rel=1e-5)


def test_the_star_is_the_lowest_layer_of_least_variability():
    assert star_of([3.0, 1.0, 1.0, np.inf]) == 2
    assert star_of([np.inf, 5.0]) == 2
    with pytest.raises(OptionError, match="No layer"):
        star_of([np.inf, np.inf])


@pytest.mark.parametrize(
    ("choice", "triple"),
    [
        ("full", (1, 12, 12)),
        ("head", (13, 12, 12)),
        ("top_k(3)", (10, 12, 12)),
        ("star", (1, 7, 7)),
        ("star_k(2)", (6, 7, 7)),
        ("star_k(9)", (1, 7, 7)),
        ("star_tuned_head_top(2)", (6, 7, 12)),
        ("3..5", (3, 5, 5)),
    ],
)
def test_what_a_choice_means(choice: str, triple: tuple[int, int, int]):
    bottom, top, head = triple
    band = band_of(checked(choice), layers=12, star=7)
    assert band == Band(bottom=bottom, top=top, head=head, everything=choice == "full")
    assert list(band.trained) == [layer - 1 for layer in range(1, 13) if bottom <= layer <= top]
    assert needs_star(choice) == ("star" in choice)
    assert may_cut(choice) or head == 12


@pytest.mark.parametrize("choice", ["", "half", "star(2)", "top_k", "top_k(-1)", "3...5", " star"])
def test_other_words_are_refused(choice: str):
    with pytest.raises(OptionError, match=r"unknown\. Known: full, head, star"):
        checked(choice)


@pytest.mark.parametrize("choice", ["top_k(0)", "top_k(13)", "star_k(13)", "0..3", "5..3", "1..13"])
def test_layers_that_the_model_has_not_are_refused(choice: str):
    with pytest.raises(OptionError, match="12"):
        band_of(choice, layers=12, star=7)
