"""Differences over the seeds that two rows share, and what so many seeds can tell."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gh_downstream.reporting import fixed

LEVEL, POWER = 0.05, 0.8
"""Probability of a difference that is none, and of seeing one that is there."""


@dataclass(frozen=True)
class Difference:
    """Paired differences of a metric, one for each seed, positive where the weighting is better.

    Everything but the mean is not a number with one seed.

    Attributes:
        values: The differences.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Their sample standard deviation."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def half(self) -> float:
        """Half the length of the 95 % confidence interval of the mean (Student's t)."""
        from scipy.stats import t

        n = len(self.values)
        return float(t.ppf(1 - LEVEL / 2, n - 1)) * self.deviation / math.sqrt(n) if n > 1 else math.nan

    @property
    def detectable(self) -> float:
        """The smallest difference that so many seeds of this spread show in 80 % of the comparisons."""
        from statsmodels.stats.power import TTestPower

        n = len(self.values)
        if n < 2 or not self.deviation:
            return self.deviation
        return self.deviation * float(TTestPower().solve_power(None, nobs=n, alpha=LEVEL, power=POWER))

    def seeds_for(self, margin: float) -> int | None:
        """Number of seeds that show a difference of ``margin`` in 80 % of the comparisons; None where it is unknown."""
        from statsmodels.stats.power import TTestPower

        if not self.deviation > 0:
            return None
        power = TTestPower()
        seeds, most = 2, 10_000
        while seeds < most and power.power(margin / self.deviation, seeds, LEVEL) < POWER:
            seeds += max(1, seeds // 20)
        return seeds

    def p_different(self) -> float:
        """Probability of a mean as far from zero, were the true one zero (Student's t)."""
        from scipy.stats import ttest_1samp

        if not self.deviation:  # Every seed says the same.
            return float(self.mean == 0)
        return float(ttest_1samp(self.values, 0.0).pvalue)

    def p_equivalent(self, margin: float) -> float:
        """Probability of a mean as near to zero, were the true one ``margin`` away (two one-sided tests)."""
        from statsmodels.stats.weightstats import DescrStatsW

        if not self.deviation:
            return float(abs(self.mean) >= margin)
        return float(DescrStatsW(np.array(self.values)).ttost_mean(-margin, margin)[0])

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside of the interval."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        """The interval, with a star where it leaves out zero."""
        if math.isnan(self.half):
            return "–"
        low, high = (fixed(end, 2) for end in (self.mean - self.half, self.mean + self.half))
        return f"[{low}, {high}]{' *' if self.excludes_zero else ''}"


def verdicts(differences: Mapping[str, Difference], margin: float) -> dict[str, str]:
    """Say of each difference what it shows, corrected for their number (Holm).

    ``better`` or ``worse`` where it is not zero, ``same within MARGIN`` where it is smaller than the margin, both where
    both is shown, and else ``cannot tell below`` the smallest difference that could have been seen. ``equal`` is what
    has the same metric in every seed.
    """
    from statsmodels.stats.multitest import multipletests

    names = [name for name, difference in differences.items() if len(difference.values) > 1]
    if not names:
        return {}
    found = [differences[name] for name in names]
    different = multipletests([one.p_different() for one in found], LEVEL, "holm")[0]
    equivalent = multipletests([one.p_equivalent(margin) for one in found], LEVEL, "holm")[0]
    said = {}
    for name, one, differs, same in zip(names, found, different, equivalent, strict=True):
        if not any(one.values):
            said[name] = "equal"
            continue
        parts = [("better" if one.mean > 0 else "worse")] if differs else []
        parts += [f"same within {margin:g}"] if same else []
        said[name] = ", ".join(parts) or f"cannot tell below {one.detectable:.1f}"
    return said
