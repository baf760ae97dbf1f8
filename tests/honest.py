"""Is a sampled answer as good as it says?"""

from __future__ import annotations

from torch import Tensor

ROUNDING = 1e-9


def assert_honest(values: Tensor, error: Tensor, truth: Tensor) -> None:
    """At most 1% of values outside 3 standard errors, none outside 6; where no error is claimed, there is none."""
    off = (values - truth).abs() - ROUNDING
    assert not bool((off[error == 0] > 0).any()), "an error of 0 was claimed, and is none"
    assert not bool((off > 6 * error).any()), "one lies more than 6 standard errors off"
    share = float((off > 3 * error).double().mean())
    assert share <= 0.01, f"{share:.1%} lie outside 3 standard errors"
