"""What would a credit teach on average? Expected gradients by listing every state, joint action and case of luck.

Order matters. A per-agent reward stream that is summed over time, sum_t rho_it, has the expected gradient

    sum_t E[ grad log pi_i(a_it | o_it) sum_{k >= t} rho_ik ]        (agent i's parameters)

- the team's reward itself, rho = r: the true gradient;
- aristocrat rewards r - E_{c ~ pi_i} r: given (s_t, a_it) every later term has mean 0, so only
  sum_t E[ grad log pi_i r_t ] is left, the gradient of the mean return with the chance of states held still: myopic;
- default differences D_i = r(a) - r(a[i <- default]): the gradient of E sum_t D_it, another objective than the team's;
- either of them on Q instead of r: the true gradient, since what is subtracted does not depend on a_it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import Env, default_actions
from marl.gradient import flat
from marl.oracle.exact import World, reach, true_gradient
from marl.oracle.layers import Layer
from marl.policy import Actor


class Pulls(NamedTuple):
    """Expected gradients of one policy a seed, [S, P] float64 each, as `marl.gradient.estimates` lays them out."""

    true: Tensor  # of the team's mean return
    myopic: Tensor  # of what each action is paid at once: aristocrat rewards, then summed
    differences: Tensor  # of each agent's own sum of default differences


def pulls(game: Env[Any], actor: Actor, world: World | None = None) -> Pulls:
    """The three expected gradients of the frozen policies of `actor`, exact to rounding.

    world: of `marl.oracle.layers.reach(game)`, where it is at hand. Raises TooLarge (a ValueError), one sentence,
    where the game cannot be listed, and ValueError where a default action is illegal.
    """
    world = reach(game) if world is None else world
    twin, S = copy.deepcopy(actor).double(), actor.n_seeds
    probs = [_probabilities(game, twin, layer) for layer in world.layers]  # [S,K,N,A], differentiable
    team = [layer.reward[..., None].expand(*layer.reward.shape, game.n_agents) for layer in world.layers]
    own = [_differences(game, world, layer) for layer in world.layers]

    def pull(rewards: Sequence[Tensor], later: bool) -> Tensor:
        total = torch.stack([surrogate(world, [p[s] for p in probs], rewards, later) for s in range(S)]).sum()
        return flat(torch.autograd.grad(total, list(twin.parameters()), retain_graph=True), S)

    return Pulls(true_gradient(game, twin, world=world), pull(team, False), pull(own, True))


def _probabilities(game: Env[Any], actor: Actor, layer: Layer) -> Tensor:
    """[S,K,N,A] what every seed's policy does in the states of a layer."""
    S = actor.n_seeds
    mask = None if layer.mask is None else layer.mask.repeat(S, 1, 1)
    return actor(game.observe(layer.state).double().repeat(S, 1, 1), mask).unflatten(0, (S, -1))


def _differences(game: Env[Any], world: World, layer: Layer) -> Tensor:
    """[K,J,N] mean over luck of r(s, a) - r(s, a[i <- default_i]): luck does not depend on actions, so means do."""
    A, N = game.n_actions, game.n_agents
    weight = A ** torch.arange(N - 1, -1, -1)  # the number of a joint action, the last agent's varying fastest
    other = (world.joint * weight).sum(-1)[:, None] + (default_actions(game) - world.joint) * weight  # [J,N]
    if not bool((layer.legal[:, other] | ~layer.legal[..., None]).all()):
        raise ValueError(f"a default action of {type(game).__name__} is illegal in some state: no default differences")
    return layer.reward[..., None] - layer.reward[:, other]


def surrogate(world: World, probs: Sequence[Tensor], rewards: Sequence[Tensor], later: bool) -> Tensor:
    """A number whose gradient is sum_t E[ grad log pi_i(a_it) (rho_it, or with `later` sum_{k >= t} rho_ik) ].

    probs [K,N,A] and rewards [K,J,N] a layer. In states reached with chance d_t(s) it is
    sum_t sum_s d_t(s) sum_i sum_c pi_i(c|s) E[worth_i | s, a_i = c], everything but pi held still.
    """
    N = world.joint.shape[1]
    taken = [torch.stack([p[:, i, world.joint[:, i]] for i in range(N)], -1).detach() for p in probs]  # [K,J,N]
    worth = _to_go(world, taken, rewards) if later else rewards
    chosen = torch.nn.functional.one_hot(world.joint, probs[0].shape[-1]).double()  # [J,N,A]
    total = torch.zeros((), dtype=torch.float64)
    for p, e, d, w in zip(probs, taken, _reached(world, taken), worth, strict=True):
        expected = torch.einsum("kji,jia->kia", _others(e) * w, chosen)
        total = total + (d[:, None, None] * expected * p).sum()
    return total


def _others(taken: Tensor) -> Tensor:
    """[K,J,N] the chance of the other agents' part of joint action j."""
    parts = [torch.cat((taken[..., :i], taken[..., i + 1 :]), -1).prod(-1) for i in range(taken.shape[-1])]
    return torch.stack(parts, -1)


def _reached(world: World, taken: Sequence[Tensor]) -> list[Tensor]:
    """[K] a layer: the chance that an episode is alive in each state."""
    out = [world.start]
    for layer, e, after in zip(world.layers, taken, world.layers[1:], strict=False):
        flow = (out[-1][:, None] * e.prod(-1)).flatten()[layer.pair] * layer.chance
        out.append(flow.new_zeros(len(after.legal)).index_add(0, layer.next, flow))
    return out


def _to_go(world: World, taken: Sequence[Tensor], rewards: Sequence[Tensor]) -> list[Tensor]:
    """[K,J,N] a layer: sum_{k >= t} rho_ik in expectation, given the state and the joint action; an end is worth 0."""
    out: list[Tensor] = []
    value: Tensor | None = None  # [K,N] of the next layer
    for layer, e, reward in zip(reversed(world.layers), reversed(taken), reversed(rewards), strict=True):
        ahead = 0.0 if value is None else torch.stack([layer.ahead(v) for v in value.unbind(-1)], -1)
        out = [reward + ahead, *out]
        value = (e.prod(-1)[..., None] * out[0]).sum(1)
    return out
