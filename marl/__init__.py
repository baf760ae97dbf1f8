"""Which agent's which action did it? Credit-assignment methods, learners, and the true credit to hold them against."""

from marl import metrics, results, statistics
from marl.experiment import Experiment, Method, run
from marl.load import load
from marl.oracle import oracle
from marl.rollout import rollout

__all__ = ["Experiment", "Method", "load", "metrics", "oracle", "results", "rollout", "run", "statistics"]
