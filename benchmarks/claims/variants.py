"""Methods as papers set them up, where the list of all methods has none such: their learners and baselines."""

from __future__ import annotations

from functools import partial

from benchmarks.claims.hindsight_toys import AmbiguousBandit, exact_return, exact_state
from benchmarks.methods import METHODS
from marl.credit.spatial.team import Team
from marl.credit.temporal.gae import Gae
from marl.credit.temporal.hca import HcaReturn, HcaState
from marl.credit.temporal.immediate import Immediate
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.credit.temporal.n_step import NStep
from marl.credit.temporal.rudder import Rudder
from marl.critic import Fit
from marl.experiment import Method
from marl.learn.policy_gradient import Reinforce

# Key to door.
REINFORCE, VALUE = "REINFORCE", "value baseline"

# Watch repair. A return that is kept says nothing new when it is summed again: RUDDER's redistributed reward is used at
# once, as its authors do ("direct Q-value estimation").
WATCH_RUDDER, WATCH_MC, WATCH_TD = "RUDDER + immediate", "watch MC", "watch TD"
WATCH_FIT = Fit(lr=0.01, passes=16, minibatches=1, hidden=(16,))

# The toys of hindsight: a policy of four numbers, small batches, everything else alike for all.
TABLE = Reinforce(hidden=(), episodes=8)
TABLE_FIT = Fit(passes=4, minibatches=1, hidden=(16,))
PG, THREE_STEPS, HCA_RETURN, HCA_STATE = "policy gradient", "3-step policy gradient", "return HCA", "state HCA"
KNOWS_RETURN, KNOWS_STATE = "return HCA, exact h", "state HCA, exact h"  # of the bandit
BANDIT = AmbiguousBandit()  # whether its states are hidden does not matter to h

VARIANTS: dict[str, Method] = {
    REINFORCE: Method((Team, partial(MonteCarlo, baseline="none")), "baseline"),
    VALUE: Method((Team, partial(Gae, lam=1.0)), "temporal"),
    WATCH_RUDDER: Method((partial(Rudder, auxiliary=5.0), Team, Immediate), "temporal", Reinforce(), WATCH_FIT),
    WATCH_MC: Method((Team, MonteCarlo), "baseline", Reinforce()),
    WATCH_TD: Method((Team, partial(NStep, n=1)), "temporal", Reinforce(), Fit(lr=0.01)),
    PG: Method((Team, MonteCarlo), "baseline", TABLE),
    THREE_STEPS: Method((Team, partial(NStep, n=3)), "temporal", TABLE, TABLE_FIT),
    HCA_RETURN: Method((Team, HcaReturn), "temporal", TABLE, TABLE_FIT),
    HCA_STATE: Method((Team, HcaState), "temporal", TABLE, TABLE_FIT),
    KNOWS_RETURN: Method((Team, partial(HcaReturn, floor=0.0, exact=exact_return(BANDIT))), "temporal", TABLE),
    KNOWS_STATE: Method((Team, partial(HcaState, exact=exact_state(BANDIT))), "temporal", TABLE),
}
KNOWN = METHODS | VARIANTS
