"""A small network is quicker when its layers are computed together, a few rows at a time, than one after the other.

The fast CPU tier behind `marl.networks`, compiled by numba on first use and cached on disk; float32 only. Outputs and
gradients are those of the torch tier to 1e-6 of their size (see tests), and torch stays the reference. Read `blocks`
first, then `autograd`; each further file takes one loop of the project whole: `acting` a step of play, `descent` PPO's,
REINFORCE's and a critic's gradient steps, `q_descent` Q-learning's, `action_descent` COMA's critic, `gru` a memory.
"""

from marl.fused.autograd import network
from marl.fused.objective import policy_loss

__all__ = ["network", "policy_loss"]
