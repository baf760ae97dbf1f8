"""Order matters: expected gradients by enumeration against everything chance can bring, and against measured ones."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import pytest
import torch
from tiny_atoms import FiniteMasked, FiniteTiny
from tiny_mdp import (
    TinyMdp,
    acting,
    every_noise,
    expected_gradient,
    given_joint,
    joint_index,
    lopsided,
    solve,
    true_gradient,
)
from torch import Tensor, nn

from envs.walking_robot import WalkingRobot
from marl import metrics
from marl.credit.base import Chain, Context, Operator
from marl.credit.joint.simulated_q import SimulatedQ
from marl.credit.spatial.aristocrat import Aristocrat
from marl.credit.spatial.difference import Difference
from marl.credit.spatial.team import Team
from marl.credit.temporal.immediate import Immediate
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.expected_gradient import Pulls, pulls
from marl.gradient import estimates
from marl.oracle.exact import reach
from marl.policy import Actor
from marl.rollout import play
from marl.types import Trajectory

RETURN = partial(MonteCarlo, baseline="none")
TINY = [FiniteTiny(), FiniteTiny(3, 2), FiniteTiny(2, 2, 3, seed=4), FiniteTiny(1, 4)]


class TableActor(nn.Module):
    """A policy with one logit a (time, place, agent, action)."""

    n_seeds = 1
    memory = 0  # it looks at the present alone

    def __init__(self, game: TinyMdp, table: Tensor) -> None:
        super().__init__()
        self.game, self.logits = game, nn.Parameter(table.log())

    def forward(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        return acting(self.game, self.logits.softmax(-1))(obs, mask)


def everything(game: TinyMdp) -> tuple[Tensor, Pulls, Trajectory]:
    table = lopsided(game)
    found = pulls(game, TableActor(game, table))  # type: ignore[arg-type]
    shaped = Pulls(*(x.reshape(table.shape) for x in found))
    return table, shaped, play(game, acting(game, table), every_noise(game))


@pytest.mark.parametrize("game", TINY, ids=repr)
def test_what_order_predicts_is_what_credit_does(game: TinyMdp) -> None:
    """Over everything chance can bring, to 1e-12: each chain's mean gradient is its prediction, and no other."""
    table, exact, tau = everything(game)
    context = Context(game, (0,), acting(game, table))

    def mean(*chain: Operator) -> Tensor:
        return expected_gradient(game, table, tau, Chain(chain, context).assign(tau))

    assert (exact.true - true_gradient(game, table)).abs().max() < 1e-12
    assert (mean(Team, RETURN) - exact.true).abs().max() < 1e-12
    assert (mean(Aristocrat, RETURN) - exact.myopic).abs().max() < 1e-12
    assert (mean(Team, partial(Immediate, baseline="none")) - exact.myopic).abs().max() < 1e-12
    assert (mean(Difference, RETURN) - exact.differences).abs().max() < 1e-12
    for one, other in product(range(3), range(3)):
        assert one == other or (exact[one] - exact[other]).abs().max() > 1e-3  # three different objectives


@pytest.mark.parametrize("game", TINY, ids=repr)
def test_on_q_both_are_right(game: TinyMdp) -> None:
    """Q less its mean over own actions, and Q less Q of the default: the true gradient, to 1e-12."""
    table, exact, tau = everything(game)
    value, joint = solve(game, table), joint_index(game, tau.action)
    t, place = torch.arange(game.horizon)[:, None], tau.state.place
    default = torch.tensor(game.default_action)
    swapped = torch.stack(
        [
            joint_index(game, torch.where(torch.arange(game.n_agents) == i, default, tau.action))
            for i in range(game.n_agents)
        ],
        -1,
    )
    aristocrat = given_joint(game, table, value.q)[t, place, joint]
    difference = value.q[t, place, joint][..., None] - value.q[t[..., None], place[..., None], swapped]
    for credit in (aristocrat, difference):
        found = expected_gradient(game, table, tau, credit * tau.alive[..., None])
        assert (found - exact.true).abs().max() < 1e-12


@pytest.mark.parametrize("shared", [False, True], ids=["own networks", "one network"])
def test_seeds_apart_and_together(shared: bool) -> None:
    """A population's pulls are those of each policy alone, in the layout of measured gradients."""
    game = FiniteTiny(2, 3)
    both, alone = (Actor(game, seeds, (4,), shared) for seeds in ((3, 5), (5,)))
    for one, many in zip(pulls(game, alone), pulls(game, both, reach(game)), strict=True):
        assert many.shape == (2, one.shape[1]) and torch.allclose(one[0], many[1], atol=1e-12)


def test_a_default_that_the_rules_forbid_is_refused() -> None:
    """Nobody can be compared with a move that cannot be made; without such a move forbidden actions do no harm."""
    game = FiniteMasked(2, 2)
    actor = Actor(game, (0,), (4,))
    assert torch.isfinite(torch.stack(pulls(game, actor))).all()

    class Forbidden(FiniteMasked):
        default_action = 2

    with pytest.raises(ValueError, match="a default action of Forbidden is illegal"):
        pulls(Forbidden(2, 2), actor)


@pytest.fixture(scope="module")
def robot() -> tuple[WalkingRobot, Actor, Pulls]:
    """A walk whose fall comes two steps late, and policies off the beginning."""
    game = WalkingRobot(n_agents=3, horizon=6, delay=2, window=3, n_cues=2)
    actor = Actor(game, (1, 2))
    with torch.no_grad():
        actor.net.weights[-1].mul_(100)
    return game, actor, pulls(game, actor)


CHAINS: dict[str, tuple[tuple[Operator, ...], str]] = {
    "return": ((Team, RETURN), "true"),
    "aristocrat, then sum": ((Aristocrat, RETURN), "myopic"),
    "difference, then sum": ((Difference, RETURN), "differences"),
    "aristocrat on Q": ((SimulatedQ,), "true"),
    "difference on Q": ((partial(SimulatedQ, kind="difference"),), "true"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_measured_means_follow_the_predictions(name: str, robot: tuple[WalkingRobot, Actor, Pulls]) -> None:
    """walking_robot, 300 batches: within the noise of the mean of its own prediction, far from the others."""
    game, actor, exact = robot
    chain, follows = CHAINS[name]
    g = estimates(game, actor, Chain(chain, Context(game, actor.seeds, actor)), 16, 300).double().numpy()
    for target in Pulls._fields:
        told = metrics.gradient(g, getattr(exact, target).numpy())
        squared = told.relative_error**2 / (told.variance / 300)  # 1 in expectation, where unbiased
        if target == follows:
            assert (squared < 2.5).all() and (told.cosine > 0.9).all()
        else:
            assert (squared > 4).all()


def test_the_myopic_pull_forgets_the_fall(robot: tuple[WalkingRobot, Actor, Pulls]) -> None:
    """With a delayed fall the immediate part is small and points elsewhere; with none it points the same way."""
    _, actor, exact = robot
    late = torch.cosine_similarity(exact.true, exact.myopic)
    now = pulls(WalkingRobot(n_agents=3, horizon=6, delay=0, window=3, n_cues=2), copy.deepcopy(actor))
    assert (late < 0.3).all() and (exact.myopic.norm(dim=1) < 0.2 * exact.true.norm(dim=1)).all()
    assert (torch.cosine_similarity(now.true, now.myopic) > 0.9).all()
