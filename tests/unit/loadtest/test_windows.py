"""Where a load had settled."""

from __future__ import annotations

import numpy as np

from loadtest.windows import is_growing, mean_count, mser, settled_after


def test_a_ramp_is_cut_and_noise_is_not() -> None:
    """A warm-up of fifty bins is found, to within ten but for one in twenty; of noise alone hardly ever anything."""
    from_noise, found = [], []
    for seed in range(20):
        values = np.random.default_rng(seed).normal(100, 5, 300)
        from_noise.append(settled_after(values))
        values[:50] *= np.linspace(0, 1, 50)
        found.append(settled_after(values))
        assert settled_after(values[::-1]) == 0, "a warm-up is no cool-down"
    assert min(found) >= 40
    assert sum(cut > 60 for cut in found) <= 1
    assert max(from_noise) <= 10
    assert sum(cut > 0 for cut in from_noise) <= 2


def test_mser_drops_at_most_half() -> None:
    """A series that never settles gives no truncation worth the name."""
    assert mser(np.linspace(0.0, 1.0, 40)) <= 20
    assert mser(np.array([9.0, 9.0, *np.tile([1.0, 1.1], 10)])) == 2


def test_a_growing_queue_is_told() -> None:
    """Requests in flight that grow from quarter to quarter never settled; a level number that wavers did."""
    assert is_growing(np.linspace(1, 100, 200))
    assert not is_growing(50 + np.sin(np.arange(200)))


def test_mean_count_by_hand() -> None:
    """One span over half a bin and one over all of it: one and a half on average."""
    found = mean_count(np.array([0.0, 2.0, 4.0]), np.array([1.0, 0.0]), np.array([2.0, 3.0]))
    assert found.tolist() == [1.5, 0.5]
