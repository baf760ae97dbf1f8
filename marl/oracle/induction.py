"""What a policy is worth: backward induction in float64 over every state that an episode can reach.

    Q(s, a) = E[r + gamma V(s')],   V(s) = sum_a pi(a | s) Q(s, a),   pi(a | s) = prod_i pi_i(a_i | o_i)

and with a maximum in place of the sum over a, what the best joint policy that sees the full state is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import Env
from marl.oracle.layers import Layer, World, reach
from marl.oracle.remembered import Remembering
from marl.policy import Actor
from marl.rollout import MEMORY, remembers, seeds_of, uniform_policy
from marl.types import Policy


class Solution(NamedTuple):
    """What a policy is worth in every state, a tensor a time layer (t = 0, 1, ...)."""

    world: World  # states, rewards and what leads where
    gamma: float
    probs: tuple[Tensor, ...]  # [K,N,A] each agent's policy
    joint: tuple[Tensor, ...]  # [K,J] the joint policy
    q: tuple[Tensor, ...]  # [K,J], 0 where illegal
    v: tuple[Tensor, ...]  # [K]
    occupancy: tuple[Tensor, ...]  # [K] probability of being alive in the state at t
    value: Tensor  # [] expected return of an episode

    @property
    def cost(self) -> int:
        """Simulator steps spent."""
        return self.world.cost

    def __repr__(self) -> str:
        """The answer, not its numbers."""
        return f"Solution(value={float(self.value):.6g}, gamma={self.gamma}, {self.world!r})"


class Optimum(NamedTuple):
    """The best that joint policies which see the full state can do, a tensor a time layer."""

    world: World
    q: tuple[Tensor, ...]  # [K,J] of each joint action, the best after it; minus infinity where illegal
    v: tuple[Tensor, ...]  # [K]
    value: Tensor  # [] expected return of an episode


def solve(
    game: Env[Any],
    policy: Policy | None,
    *,
    gamma: float = 1.0,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> Solution:
    """Q, V and occupancy of a policy (None: uniformly random) in every reachable state.

    Args:
        memory: bytes that the answer and the work on it may take.
        world: `reach(game)`, to list the states of one game once for many policies.
    Raises: TooLarge (a ValueError) where the states cannot be listed; ValueError for a policy of several seeds, or one
        that takes illegal actions.
    """
    world = reach(game, memory=memory, device=device) if world is None else world
    with torch.no_grad():
        probs, joint, q, v = _evaluate(world, policy, gamma)
        here = [world.start]
        for layer, chance, later in zip(world.layers, joint, v[1:], strict=False):
            flow = (here[-1][:, None] * chance).flatten()[layer.pair] * layer.chance
            here.append(torch.zeros_like(later).index_add(0, layer.next, flow))
        return Solution(world, gamma, probs, joint, q, v, tuple(here), (world.start * v[0]).sum())


def optimal(
    game: Env[Any],
    *,
    gamma: float = 1.0,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> Optimum:
    """V*(s) = max_a E[r + gamma V*(s')] over legal joint actions, in every reachable state. Raises TooLarge."""
    world = reach(game, memory=memory, device=device) if world is None else world
    layers = world.layers
    q, v = _induce(world, gamma, lambda t, q: q.masked_fill(~layers[t].legal, -torch.inf).amax(1))
    q = tuple(x.masked_fill(~layer.legal, -torch.inf) for x, layer in zip(q, layers, strict=True))
    return Optimum(world, q, v, (world.start * v[0]).sum())


def expected_return(
    game: Env[Any],
    policy: Policy | None,
    *,
    gamma: float = 1.0,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> Tensor:
    """[] V of the first state, its mean over resets: differentiable in what the policy computes. Raises as `solve`.

    Its gradient is the true policy gradient, sum_t gamma^t sum_s P(s_t = s) sum_{i,c} O3_i(s,c) grad pi_i(c | o_i).
    """
    world = reach(game, memory=memory, device=device) if world is None else world
    return (world.start * _evaluate(world, policy, gamma)[3][0]).sum()


def true_gradient(
    game: Env[Any], actor: Actor, *, gamma: float = 1.0, memory: int = MEMORY, world: World | None = None
) -> Tensor:
    """[S,P]: gradient of each seed's expected return in its own P parameters, in the order of `actor.parameters()`.

    Of actors that remember, in float64 whatever theirs is.
    """
    if actor.memory:
        return _through_time(game, actor, gamma, memory, world)
    parameters = list(actor.parameters())
    world = reach(game, memory=memory, device=parameters[0].device) if world is None else world
    total = torch.stack(
        [expected_return(game, one_seed(actor, s), gamma=gamma, world=world) for s in range(actor.n_seeds)]
    )
    gradients = torch.autograd.grad(total.sum(), parameters)
    return torch.cat([g.reshape(actor.n_seeds, -1) for g in gradients], 1)


def _through_time(game: Env[Any], actor: Actor, gamma: float, memory: int, world: World | None) -> Tensor:
    """`true_gradient` of actors that remember: states are listed with what leads to their memory, seed by seed."""
    if world is not None:
        raise ValueError("the states of actors with a memory depend on their parameters: world must be None")
    found = []
    for s in range(actor.n_seeds):
        own = Remembering(game, actor, s)
        assert isinstance(own.remembers, Actor)
        parameters = list(own.remembers.parameters())
        listed = reach(own, memory=memory, device=parameters[0].device)
        gradients = torch.autograd.grad(expected_return(own, own.policy, gamma=gamma, world=listed), parameters)
        found.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(found)


def one_seed(policy: Policy | None, seed: int) -> Policy | None:
    """The policy of one seed (by its place among them) of a population."""
    S = seeds_of(policy)
    if policy is None or S == 1:
        return policy

    def alone(obs: Tensor, mask: Tensor | None) -> Tensor:
        everyone = policy(obs.repeat(S, 1, 1), None if mask is None else mask.repeat(S, 1, 1))
        return everyone[seed * len(obs) : (seed + 1) * len(obs)]

    return alone


def _evaluate(
    world: World, policy: Policy | None, gamma: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(probs [K,N,A], joint policy [K,J], Q [K,J], V [K]), a tensor a layer; differentiable in the policy."""
    probs = tuple(_act(world.game, policy, layer) for layer in world.layers)
    joint = tuple(outer(p) for p in probs)
    q, v = _induce(world, gamma, lambda t, q: (joint[t] * q).sum(1))
    return probs, joint, q, v


def _induce(
    world: World, gamma: float, value: Callable[[int, Tensor], Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(Q [K,J], V [K]) of each layer, V = value(t, Q)."""
    qs: list[Tensor] = []
    vs: list[Tensor] = []
    for t, layer in reversed(list(enumerate(world.layers))):
        q = layer.reward + gamma * layer.ahead(vs[0]) if vs else layer.reward
        qs, vs = [q, *qs], [value(t, q), *vs]
    return tuple(qs), tuple(vs)


def _act(game: Env[Any], policy: Policy | None, layer: Layer) -> Tensor:
    """[K,N,A] float64: what each agent does in each state of a layer."""
    policy = policy or uniform_policy(game.n_actions)
    if remembers(policy):
        raise ValueError("with a policy that remembers, s includes its memory; ask about `Remembering(game, policy)`")
    if seeds_of(policy) != 1:
        raise ValueError("the policy has several seeds; an exact oracle judges one at a time (`one_seed`)")
    obs = game.observe(layer.state)
    try:
        probs = policy(obs, layer.mask)
    except RuntimeError:  # networks in float32 refuse to read float64
        probs = policy(obs.float(), layer.mask)
    if layer.mask is not None and bool((probs.detach()[~layer.mask] > 0).any()):
        raise ValueError("the policy takes illegal actions; it must give them probability 0")
    probs = probs.double()
    return probs / probs.sum(-1, keepdim=True)


def outer(probs: Tensor) -> Tensor:
    """[K, A^n]: the probability of each joint action of the n agents of probs [K,n,A]; [K,1] of ones for none."""
    joint = probs.new_ones(len(probs), 1)
    for p in probs.unbind(1):
        joint = (joint[:, :, None] * p[:, None, :]).flatten(1)
    return joint
