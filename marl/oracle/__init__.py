"""The truth: what every action was really worth. It shares no code with the methods that it judges."""

from marl.oracle.api import KINDS, baseline_of, natural_baseline, oracle

__all__ = ["KINDS", "baseline_of", "natural_baseline", "oracle"]
