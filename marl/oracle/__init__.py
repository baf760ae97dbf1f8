"""The truth: what every action was really worth. It shares no code with the methods that it judges."""

from marl.oracle.api import HOWS, baseline_of, natural_baseline, oracle, ways
from marl.oracle.kinds import KINDS

__all__ = ["HOWS", "KINDS", "baseline_of", "natural_baseline", "oracle", "ways"]
