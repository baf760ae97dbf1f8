"""Does credit get better or worse while the policies that it judges change? Its quality along training."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure

from benchmarks.figures import Data, learning_curves, style

FIND = ("culprit_auc", "unit_auc")
AGREE = ("credit_pearson",)
REMARK = ". Each point: the credit of the evaluation episodes of that moment; {}"
WHERE = {
    "find": "a gap: no run failed, or credit was constant",
    "agree": "a gap: credit or truth was constant",
}


def needs(data: Data) -> str:
    """Credit quality at two evaluation points or more."""
    metric = style.metric(data, *FIND, *AGREE)
    if metric is None:
        return f"needs one of the metrics {', '.join((*FIND, *AGREE))}"
    points = data.rows.loc[data.rows["metric"] == metric, "env_steps"].nunique()
    return "" if points > 1 else "needs credit quality at two evaluation points or more"


def draw(data: Data, what: str = "find") -> Figure:
    """`learning_curves` of a quality of credit: does it find who did it, or agree with the truth."""
    metrics = (*FIND, *AGREE) if what == "find" else (*AGREE, *FIND)
    return learning_curves.draw(data, metrics=metrics, remark=REMARK.format(WHERE[what]))


FIGURES = {"credit_training_auc": draw, "credit_training_correlation": partial(draw, what="agree")}
