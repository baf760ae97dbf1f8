"""Gradients of a frozen policy: plain loops, the exact gradient of a tiny game, and what must not mix."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from tiny_mdp import MaskedTiny, TinyMdp, rows_of, solve
from torch import Tensor

from envs.base import Env
from marl import metrics
from marl.credit.base import Chain, Context, Operator
from marl.credit.spatial.difference import Difference
from marl.credit.spatial.team import Team
from marl.credit.temporal.gae import Gae
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.gradient import batch_gradients, estimates, fit, flat, replicate
from marl.learn.policy_gradient import scaled
from marl.policy import Actor
from marl.rollout import rollout

SEEDS = (3, 5)
RETURN = (Team, partial(MonteCarlo, baseline="none"))


def actor_of(game: Env, seeds: tuple[int, ...] = SEEDS, shared: bool = False) -> Actor:
    """An actor that is far from uniform, in float64."""
    actor = Actor(game, seeds, (4,), shared).double()
    with torch.no_grad():
        actor.net.weights[-1].mul_(60)
    return actor


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shared", [False, True], ids=["own networks", "one network"])
@pytest.mark.parametrize("kind", ["taken", "every action"])
@pytest.mark.parametrize("game", [TinyMdp(2, 3, ends=0.4), MaskedTiny(2, 2)], ids=["tiny", "masked"])
def test_batch_gradients_equal_a_loop_over_units(game: TinyMdp, kind: str, shared: bool) -> None:
    """Mean over a batch's episodes of sum c grad log pi, one autograd call a batch, dead steps left out."""
    actor, batches, each = actor_of(game, shared=shared), 3, 2
    tau = rollout(game, actor, batches * each, list(SEEDS), dtype=torch.float64)
    credit = random(*tau.action.shape, *([game.n_actions] if kind == "every action" else []))
    found = batch_gradients(actor, tau, credit, batches)
    log_pi = actor(tau.obs, tau.mask).clamp(min=1e-300).log()  # 0 where forbidden: no gradient there
    for s in range(len(SEEDS)):
        for k in range(batches):
            total = torch.zeros((), dtype=torch.float64)
            for e in range(each):
                b = (s * batches + k) * each + e
                for t in range(int(tau.alive[:, b].sum())):
                    for i in range(game.n_agents):
                        if kind == "taken":
                            total = total + credit[t, b, i] * log_pi[t, b, i, tau.action[t, b, i]]
                            continue
                        for c in range(game.n_actions):
                            if tau.probs[t, b, i, c] > 0:
                                total = total + tau.probs[t, b, i, c] * credit[t, b, i, c] * log_pi[t, b, i, c]
            loop = torch.autograd.grad(total / each, list(actor.parameters()), retain_graph=True)
            assert (found[s, k] - flat(loop, len(SEEDS))[s]).abs().max() < 1e-12


def test_replicas_act_alike_and_share_nothing() -> None:
    """Each seed's policy `times` times in a row, the original left alone; running statistics go along."""
    game = TinyMdp(2, 3)
    actor = Actor(game, SEEDS, (4,), normalize=True).double()
    tau = rollout(game, actor, 6, list(SEEDS), dtype=torch.float64)
    actor.track(tau.obs, tau.alive)
    before = [x.clone() for x in actor.parameters()]
    many = replicate(actor, 3)
    assert many.seeds == (3, 3, 3, 5, 5, 5) and many.n_seeds == 6
    assert torch.allclose(many(tau.obs, tau.mask), actor(tau.obs, tau.mask), atol=1e-12)
    with torch.no_grad():
        next(iter(many.parameters())).add_(1.0)
    assert all(torch.equal(x, y) for x, y in zip(before, actor.parameters(), strict=True))


def test_batches_do_not_meet_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's gradient is that of its own episodes alone; one policy at a time or all together: the same numbers."""
    game = TinyMdp(3, 3, ends=0.3)
    actor = actor_of(game)
    tau = rollout(game, actor, 8, list(SEEDS), dtype=torch.float64)
    credit = random(*tau.action.shape)
    whole = batch_gradients(actor, tau, credit, 4)
    b = torch.arange(16).reshape(2, 4, 2)
    for k in range(4):
        rows = b[:, k].flatten()
        alone = batch_gradients(actor, rows_of(tau, rows), credit[:, rows], 1)
        assert torch.allclose(alone[:, 0], whole[:, k], atol=1e-12)
    monkeypatch.setattr("marl.gradient.TOGETHER", 1)
    assert torch.allclose(batch_gradients(actor, tau, credit, 4), whole, atol=1e-12)
    assert torch.allclose(batch_gradients(actor, tau, credit, 1)[:, 0], whole.mean(1), atol=1e-12)
    with pytest.raises(ValueError, match="batches=3 is not allowed"):
        batch_gradients(actor, tau, credit, 3)


def test_scaling_is_the_learners_of_each_batch() -> None:
    """scale=True divides by the batch's own root mean square per agent; the credit's size then means nothing."""
    game = TinyMdp(2, 3, ends=0.3)
    actor = actor_of(game)
    tau = rollout(game, actor, 6, list(SEEDS), dtype=torch.float64)
    credit = random(*tau.action.shape)
    found = batch_gradients(actor, tau, credit, 3, scale=True)
    assert torch.allclose(found, batch_gradients(actor, tau, scaled(credit, tau.alive, 6), 3), atol=1e-12)
    assert torch.allclose(found, batch_gradients(actor, tau, 1000 * credit, 3, scale=True), atol=1e-9)
    assert not torch.allclose(found, batch_gradients(actor, tau, credit, 3), atol=1e-3)


def exact_gradient(game: TinyMdp, actor: Actor) -> Tensor:
    """[S, P] of the mean return, by differentiating the backward induction over tables."""
    places = torch.eye(game.n_places, dtype=torch.float64)
    found = []
    for t in range(game.horizon):
        view = torch.cat((places, torch.full((game.n_places, 1), t / game.horizon, dtype=torch.float64)), 1)
        obs = view[:, None].expand(-1, game.n_agents, -1)
        found.append(actor(obs.repeat(actor.n_seeds, 1, 1)).unflatten(0, (actor.n_seeds, -1)))
    tables = torch.stack(found, 1)  # [S,T,places,N,A]
    total = torch.stack([solve(game, table).start for table in tables]).sum()
    return flat(torch.autograd.grad(total, list(actor.parameters())), actor.n_seeds)


def scores_of(game: TinyMdp, chain: tuple[Operator, ...], batches: int = 200) -> metrics.GradientScore:
    actor = actor_of(game).float()
    built = Chain(chain, Context(game, SEEDS, actor))
    fit(built, game, actor, 16, 60)
    g = estimates(game, actor, built, 16, batches)
    return metrics.gradient(g.numpy(), exact_gradient(game, copy.deepcopy(actor).double()).numpy())


def test_the_return_is_unbiased_and_default_differences_are_not() -> None:
    """On a random game, against the exact gradient: the mean of 200 batches within its noise, or far outside it."""
    game = TinyMdp(2, 4, ends=0.1, seed=5)
    right, wrong = scores_of(game, RETURN), scores_of(game, (Difference, partial(MonteCarlo, baseline="none")))
    assert (right.relative_error**2 < 4 * right.variance / 200).all()  # E = variance / n, over many directions
    assert (right.cosine > 0.97).all()
    assert (wrong.relative_error**2 > 12 * wrong.variance / 200).all() and (wrong.bias > 0.2).all()


def test_a_fitted_critic_lowers_variance_on_a_frozen_policy() -> None:
    """GAE(lambda .95) after fitting: more signal to noise than bare returns, nearly the same direction."""
    game = TinyMdp(2, 4, ends=0.1, seed=1)
    bare, learned = scores_of(game, RETURN), scores_of(game, (Team, Gae))
    assert (learned.snr > bare.snr).all() and (learned.cosine > 0.95).all()


def test_what_a_seed_is_estimated_at_never_depends_on_its_neighbours() -> None:
    """Seed 5 alone and beside seed 3: the same episodes, so the same gradients."""
    game = TinyMdp(2, 3)
    both = estimates(game, Actor(game, SEEDS), Chain(RETURN, Context(game, SEEDS)), 4, 3)
    alone = estimates(game, Actor(game, SEEDS[1:]), Chain(RETURN, Context(game, SEEDS[1:])), 4, 3)
    assert torch.allclose(both[1:], alone, atol=1e-5)
