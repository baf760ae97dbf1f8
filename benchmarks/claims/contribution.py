"""Key to door: whose gradient tells whether taking the key pays, over the noise of a hundred apples?

As published: the task and its rewards at T = 103, a key that is seen, batches of 8 episodes, the gradient of the first
decision alone, and HCA in the form that differs from COCOA in the outcome only. Simplified: one policy a seed, after
TRAINED updates of team + return, in place of a mean over all of training; hindsight is exact at T = 103 and learned,
by a small network, at T = 23 only, where its errors repeat themselves over a whole episode and drown the key:
its signal-to-noise is then high and says nothing, and only its direction is asked for. The authors' Q-critic has no
counterpart here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims.base import Above, Entry, Found, Number, ahead
from benchmarks.claims.variants import KNOWN, REINFORCE, VALUE
from benchmarks.methods import METHODS
from envs.base import Env, map_state
from envs.key_door import EAT, TAKE, KeyDoor, KeyDoorState
from marl import metrics
from marl.credit.base import Chain
from marl.credit.spatial.team import Team
from marl.credit.temporal.cocoa import Cocoa
from marl.credit.temporal.hca import HcaState
from marl.experiment import Experiment, Method, learn
from marl.gradient import batch_gradients, fit, flat
from marl.oracle.exact import one_seed, reach, solve
from marl.policy import Actor
from marl.rollout import rollout, some
from marl.types import Trajectory

MEULEMANS = "Meulemans et al. 2023, COCOA"
TRAINED = 30  # updates of a neutral method (team + return) that each policy has had
EPISODES = 8  # episodes of a batch: the paper's

Exact = Callable[[Trajectory, Tensor], Tensor]


def exact_hindsight(game: KeyDoor, actor: Actor, outcome: str) -> Exact:
    """h of `Cocoa` (outcome "reward") or `HcaState` ("state"), in closed form, for one agent that sees its key.

    Only the first action matters to anything later, and only by the key: h(c | s_0, u_k) ~ pi(c) P(u_k | key(c)), and
    h(. | s_t, u_k) = pi(. | s_t) for t > 0. A state tells the key. So does the door's reward; an apple's reward tells
    it as far as the policy eats more, or fewer, apples with a key in its hand.
    """
    eats = chance_to_eat(game, actor)

    def h(trajectory: Trajectory, u: Tensor) -> Tensor:
        T, B, _ = trajectory.action.shape
        held, paid = trajectory.state.key[..., 0], trajectory.reward > 0
        if outcome == "reward":
            eat = eats.repeat_interleave(B // actor.n_seeds, 2)
            tells = torch.where(paid, eat, 1 - game.apple_probability * eat)  # [2,T,B] P(u_k | no key, key)
            tells[:, -1] = torch.stack((~paid[-1], paid[-1])).to(eat.dtype)
        else:
            tells = torch.stack((~held, held)).to(eats.dtype)
        key = (torch.arange(game.n_actions) == TAKE).long()  # which actions lead to one
        likely = tells[key].permute(1, 2, 0) * trajectory.probs[0, :, 0]  # [T,B,A]
        out = trajectory.probs[:, None].repeat(1, T, 1, 1, 1)
        out[0, :, :, 0] = likely / likely.sum(-1, keepdim=True).clamp(min=1e-30)
        return out

    return h


def chance_to_eat(game: KeyDoor, actor: Actor) -> Tensor:
    """[2,T,S] probability that an apple in sight at step t is eaten, without and with the key."""
    T, S = game.horizon, actor.n_seeds
    t = torch.arange(T).repeat(S)
    apple = torch.ones(S * T, 1, dtype=torch.bool)
    found = []
    for key in (~apple, apple):
        with torch.no_grad():
            probs = actor(game.observe(KeyDoorState(t, key, apple, torch.zeros(S * T, 1))))
        found.append(probs[:, 0, EAT].reshape(S, T).T)
    return torch.stack(found)


# The gradient of the key's decision.


def first_decision(actor: Actor, game: KeyDoor) -> Tensor:
    """[S,P] true gradient of the expected return in the parameters, through the first action alone.

    grad sum_c pi(c | s_0) Q(s_0, c) with Q held fixed, by listing every state.
    """
    world = reach(game)
    q = torch.stack([solve(game, one_seed(actor, s), world=world).q[0][0] for s in range(actor.n_seeds)])  # [S,A]
    start = game.reset(torch.zeros(actor.n_seeds, game.reset_noise_size))
    value = (actor(game.observe(start))[:, 0] * q.float()).sum()
    return flat(torch.autograd.grad(value, list(actor.parameters())), actor.n_seeds)


def first_gradients(game: KeyDoor, actor: Actor, chain: Chain, batches: int) -> Tensor:
    """[S, batches, P] what a chain's credit of the first action makes of each batch of EPISODES fresh episodes."""
    S = actor.n_seeds
    trajectory = rollout(game, actor, batches * EPISODES, list(actor.seeds), purpose="gradient")
    rows = torch.arange(S * batches * EPISODES).reshape(S, batches, -1)
    found = []
    for k in range(batches):
        batch = some(trajectory, rows[:, k].flatten())
        found.append(batch_gradients(actor, beginning(batch), chain.assign(batch)[:1]))
    return torch.cat(found, 1)


def beginning(trajectory: Trajectory) -> Trajectory:
    """The first step alone."""
    fields = {name: x[:1] for name, x in trajectory._asdict().items() if isinstance(x, Tensor)}
    return trajectory._replace(state=map_state(lambda x: x[:1], trajectory.state), **fields)


@dataclass(frozen=True)
class SignalToNoise:
    """|E g|^2 / tr Cov g of one batch's gradient of the key's decision, for each method, and differences.

    `exact`: hindsight distributions in closed form; else everything is fitted to the policy's episodes, `fitting`
    batches of them. Numbers: "NAME", "NAME cosine" (with the true gradient) and "A - B" for each of `pairs`.

    The policy of a seed has had TRAINED updates of team + return; it sees the key, as in the source.
    """

    exact: ClassVar[bool] = False
    pairs: tuple[tuple[str, str], ...]
    given: bool  # exact hindsight distributions
    batches: int = 128
    fitting: int = 100

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        assert isinstance(game, KeyDoor)
        neutral = METHODS["team + return"]
        steps = TRAINED * game.horizon * neutral.learner.episodes
        *_, last = learn(Experiment(game, neutral, list(seeds), steps, points=1, judge=False))
        truth = first_decision(last.actor, game).double().numpy()
        snr: Found = {}
        cosine: Found = {}
        for name in dict.fromkeys(name for pair in self.pairs for name in pair):
            chain = self.method(name, game, last.actor).credit(game, tuple(seeds), last.actor)
            fit(chain, game, last.actor, 32, self.fitting)
            samples = first_gradients(game, last.actor, chain, self.batches).double().numpy()
            found = metrics.gradient(samples, truth)
            snr[name], cosine[f"{name} cosine"] = np.asarray(found.snr), np.asarray(found.cosine)
        return snr | cosine | {f"{a} - {b}": snr[a] - snr[b] for a, b in self.pairs}

    def method(self, name: str, game: KeyDoor, actor: Actor) -> Method:
        """The method of that name, told the exact h where asked for."""
        outcome = {"COCOA reward": "reward", "HCA state": "state"}.get(name)
        if not self.given or outcome is None:
            return KNOWN[name]
        operator = Cocoa if outcome == "reward" else HcaState
        return Method((Team, partial(operator, exact=exact_hindsight(game, actor, outcome))), "temporal")


def key_to_door(claim: str, given: bool, horizon: int) -> Entry:
    """COCOA above HCA and REINFORCE in signal-to-noise, and right on average: a clear voice may say the wrong thing."""
    pairs = tuple((COCOA, name) for name in ("HCA state", VALUE, REINFORCE))
    orders = tuple(ahead(*pair) for pair in pairs) if given else ()  # a loud error is no signal: learned, only whether
    numbers = (*orders, Number(f"{COCOA} cosine", "unbiased or nearly so", Above(0.9)))
    knobs = {"observe_key": True, "horizon": horizon}
    full, quick = SignalToNoise(pairs, given, fitting=200), SignalToNoise(pairs, given, batches=32, fitting=50)
    return Entry(claim, MEULEMANS, "key_door", knobs, full, numbers, quick)


COCOA = "COCOA reward"
ENTRIES: dict[str, Entry] = {
    "cocoa-exact": key_to_door(
        "key to door, T = 103: signal-to-noise of the key's gradient, exact hindsight distributions", True, 103
    ),
    "cocoa-learned": key_to_door(
        "key to door, T = 23: does the key's gradient stay right with hindsight learned from 6,400 episodes?", False, 23
    ),
}
