"""Second opinions on the pooled differences: a mixed model, an exact test over seeds, effect sizes.

They share nothing with the bootstrap but the differences themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

from peftport.report.claims import ALL, Claim, Finding
from peftport.report.evidence import CONTROLS, Evidence
from peftport.report.explore import effect, pair_names
from peftport.report.resample import Resampled, holm
from peftport.report.stats import Paired, paired

#: sign flips are enumerated up to this many blocks (2^16 labellings)
EXACT_BLOCKS = 16
Z = float(stats.norm.ppf(0.975))


class Mixed(NamedTuple):
    """Estimate of a mixed model with its 95% Wald interval; ``note`` says what went wrong."""

    point: float
    low: float
    high: float
    note: str


def second_opinions(evidence: Evidence, scores: Resampled) -> pd.DataFrame:
    """One line per control and deciding budget, all methods and host pairs pooled."""
    lines: list[dict[str, Any]] = []
    for control in CONTROLS:
        for budget in evidence.claim_budgets:
            pairs = paired(evidence, scores, control, budget)
            if not len(pairs):
                continue
            i, mixed = pairs.mean(scores), mixed_model(pairs, scores)
            p, least, blocks = sign_flips(pairs.values(scores), pairs.units["seed"].to_numpy())
            lines.append({
                "control": control, "budget": budget, "bootstrap": i.point, "low": i.low,
                "high": i.high, "mixed": mixed.point, "mixed_low": mixed.low,
                "mixed_high": mixed.high, "exact_p": p, "least_p": least, "blocks": blocks,
                **effect(pairs, scores), "note": mixed.note,
            })  # fmt: skip
    return pd.DataFrame(lines)


def mixed_model(pairs: Paired, scores: Resampled) -> Mixed:
    """Mean of the differences under crossed random effects, by restricted maximum likelihood.

    difference = mean + method (fixed, summing to 0) + seed + source + target + source:target +
    the control's training (shared by several sources) + error. Methods are fixed: the claim is
    about these.
    Source: Laird & Ware 1982 (Biometrics 38); Baayen et al. 2008 for crossed effects.
    """
    units, values = pairs.units, pairs.values(scores)
    groups: dict[str, Sequence[Any]] = {
        "seed": units["seed"].tolist(),
        "source": units["source"].tolist(),
        "target": units["target"].tolist(),
        "pair": pair_names(units).tolist(),
        "control training": pairs.minus.tolist(),
    }
    used = {n: v for n, v in groups.items() if 1 < len(set(v)) < len(v)}
    if len(values) < 8 or values.std() == 0 or len(set(groups["seed"])) < 2:
        return Mixed(float(values.mean()), np.nan, np.nan, "too few differing pairs for a model")
    tables = [pd.get_dummies(pd.Series(v)).to_numpy(float) for v in used.values()]
    names = [[str(at) for at in range(table.shape[1])] for table in tables]
    parts = VCSpec(list(used), [[n] for n in names], [[table] for table in tables])
    fixed = pd.get_dummies(units["method"]).to_numpy(float)  # [U, M]
    fixed = fixed[:, :-1] - fixed[:, -1:]  # sum to zero, so that the first column is the mean
    design = np.column_stack([np.ones(len(values)), fixed - fixed.mean(axis=0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of 0 lies on the boundary and is told below
        try:
            model = MixedLM(values, design, groups=np.zeros(len(values)), exog_vc=parts)
            fit = model.fit(reml=True, method=["lbfgs", "powell"])
        except (np.linalg.LinAlgError, ValueError):
            return Mixed(float(values.mean()), np.nan, np.nan, "the model cannot be fitted")
    point, error = float(fit.fe_params[0]), float(fit.bse_fe[0])
    zero = [name for name, v in zip(parts.names, fit.vcomp, strict=True) if v < 1e-3 * fit.scale]
    note = f"no variance of its own for {', '.join(zero)}" if zero else ""
    if not np.isfinite(error):
        return Mixed(point, np.nan, np.nan, "the model has no standard error")
    return Mixed(point, point - Z * error, point + Z * error, note)


def sign_flips(values: np.ndarray, blocks: np.ndarray) -> tuple[float, float, int]:
    """Exact two-sided test that differences are symmetric around 0; a block flips as one.

    Args:
        values, blocks: difference and seed of every pair ``[U]``; what shares a seed moves as one.

    Returns:
        p, the smallest p that so many blocks allow, and the number of blocks. More than
        EXACT_BLOCKS are drawn at random.
    Source: Fisher 1935; scipy.stats.permutation_test, permutation_type "samples".
    """
    means = pd.Series(values).groupby(blocks).mean().to_numpy()
    if len(means) < 2:
        return 1.0, 1.0, len(means)
    test = stats.permutation_test(
        (means,), np.mean, permutation_type="samples", n_resamples=2**EXACT_BLOCKS,
        vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue), 2.0 ** (1 - len(means)), len(means)


def family(claims: Sequence[Claim]) -> dict[str, float]:
    """Claim to its p, adjusted by Holm's method over the family of claims.

    A claim about a control holds only at both budgets, so its p is the largest of the pooled lines
    (an intersection-union test); claims 3 and 4 bring the smallest of theirs, which are adjusted
    already. Claims without enough data are not in the family.
    """
    found = dict(_own_p(claims))
    return dict(zip(found, holm(list(found.values())), strict=True))


def _own_p(claims: Sequence[Claim]) -> Iterator[tuple[str, float]]:
    for claim in claims:
        pooled = [f for f in claim.findings if f.method == ALL and f.pair == ALL]
        decided = [f for f in pooled if f.p_holm is not None and f.interval is not None]
        if claim.answer == "not enough data" or not decided:
            continue
        if claim.name.startswith("ported >"):
            yield claim.name, max(_raw(f) for f in decided)
        else:
            yield claim.name, min(f.p_holm for f in decided if f.p_holm is not None)


def _raw(finding: Finding) -> float:
    return finding.interval.p if finding.interval else 1.0
