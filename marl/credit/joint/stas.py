"""The return is divided among steps, and each step's part among the agents, by what a team without them would say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.noise import uniform
from marl.credit.base import ChainError, Context, Credit, Signal, live_only, mean_over_episodes
from marl.credit.counterfactual import episode_names
from marl.credit.spatial.shapley import coalitions
from marl.credit.temporal.uniform import total
from marl.networks import ACTIVATIONS, Population, from_per_agent, from_per_seed, per_agent
from marl.sequence import Memory
from marl.types import Trajectory

EXACT = 5  # agents up to which all 2^N coalitions are asked
ROOM = 1 << 22  # hidden units of coalitions that are held at once


class Stas(Credit):
    """Spatial-temporal return decomposition with Shapley shares (Chen et al. 2023, "STAS"):

    r_it = phi_i(v_t) + v_t({}) / N,   phi the Shapley shares of   v_t(C) = w . relu(sum_{i in C} u_it) + b,

    u_it what a sequence network says of agent i's observations and actions up to t. sum_i r_it = v_t(everyone).

    The paper's: a temporal network of each agent's own past, then coalitions of agents at each step, fitted so that the
    sum over steps and agents is the return G. Ours: `Memory` stands for temporal attention and a sum over members for
    spatial attention. The paper's code masks each teammate by a coin flip; then coalitions of half the team are asked
    far too often, and what comes out is no Shapley value. Here it is one: over all 2^N coalitions up to N = 5, beyond
    it over `orders` fixed random orders of the agents with all their rotations, in which everyone joins at every place
    equally often. Efficient shares need v of the whole team only, so nothing would say what v of a part means: the
    loss is (sum_t v_t(everyone) - G)^2 plus `parts` times the same for one random coalition an episode, of uniformly
    random size. v_t(C) thus tells what can be known of G from C's deeds: attribution by prediction, not intervention.
    Returns are kept only as well as v fits them.
    """

    signals = {Signal.RAW: Signal.AGENT, Signal.TEAM: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("model",)
    batches: Tensor
    member: Tensor
    weight: Tensor

    def __init__(self, context: Context, orders: int | None = None, parts: float = 1.0) -> None:
        super().__init__(context)
        if orders is not None and orders < 1:
            raise ChainError(f"Stas: orders={orders!r} is not allowed; it must be 1 or more")
        if not 0 <= parts < float("inf"):
            raise ChainError(f"Stas: parts={parts!r} is not allowed; it must be a number, 0 or more")
        game, how, seeds = context.game, context.fit, context.seeds
        N, width = game.n_agents, how.hidden[-1]
        self.parts, self.squash = parts, ACTIVATIONS[how.activation]
        sizes = (game.obs_size + game.n_actions + N, *how.hidden, width)
        self.memory = Memory("stas", seeds, sizes, width, game.horizon, how.activation)
        self.head = Population("stas/worth", seeds, 1, (width, 1))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64, device=context.device))
        whole = orders is None and N <= EXACT
        member, weight = coalitions(N, context.device) if whole else joining(fixed_orders(N, orders or 1))
        self.register_buffer("member", member.float().to(context.device))
        self.register_buffer("weight", weight.to(context.device))

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        u = self.tokens(trajectory)
        few = max(1, ROOM // (len(self.member) * u[..., 0].numel()))
        shares = torch.cat([self.shares(some) for some in u.split(few, -1)], -1)
        nobody = self.worth(u[:, :1] * 0) / u.shape[1]
        out = from_per_agent((shares + nobody)[:, :, None], trajectory.reward.shape[:1], trajectory.reward.shape[1])
        return live_only(out[..., 0], trajectory.alive)

    def track(self, trajectory: Trajectory, signal: Tensor) -> None:
        """Count the batch, so that the next fit draws other coalitions."""
        self.batches += 1

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S]."""
        T, B = trajectory.reward.shape
        u, G = self.tokens(trajectory), total(signal, trajectory)
        some = some_agents(trajectory, self.batches).to(u.dtype).expand(T, -1, -1)
        teams = u.sum(1), (u * per_agent(some[..., None], self.context.n_seeds)).sum(1)
        told = [from_per_seed(self.worth(team[:, None])[:, :, None], (T,), B)[..., 0] for team in teams]
        whole, part = ((live_only(v, trajectory.alive).sum(0) - G).square() for v in told)
        return mean_over_episodes(whole + self.parts * part, self.context.n_seeds)

    def tokens(self, trajectory: Trajectory) -> Tensor:
        """u [S,N,H,R], R running over steps and a seed's episodes."""
        x = deeds(trajectory)
        return per_agent(self.memory(x.flatten(1, 2)).unflatten(1, x.shape[1:3]), self.context.n_seeds)

    def worth(self, together: Tensor) -> Tensor:
        """v [S,K,R] of K coalitions, whose members' u sum to [S,K,H,R]; in units of 1/T, so that sums start near 1."""
        return self.head(self.squash(together))[:, :, 0] / self.context.game.horizon

    def shares(self, u: Tensor) -> Tensor:
        """phi [S,N,R] of u [S,N,H,R]."""
        together = (self.member.to(u.dtype) @ u.flatten(2)).unflatten(2, u.shape[2:])
        return self.weight.T.to(u.dtype) @ self.worth(together)


def deeds(trajectory: Trajectory) -> Tensor:
    """[T,B,N,F] what each agent saw and did and who it is: observation, one-hot action, one-hot i."""
    obs, A = trajectory.obs, trajectory.probs.shape[-1]
    taken = nn.functional.one_hot(trajectory.action, A).to(obs.dtype)
    me = torch.eye(obs.shape[2], dtype=obs.dtype, device=obs.device).expand(*obs.shape[:2], -1, -1)
    return torch.cat((obs, taken, me), -1)


def some_agents(trajectory: Trajectory, draw: Tensor) -> Tensor:
    """[B,N] bool a coalition for each episode, its size uniform on 0..N; named by the episode and a whole number."""
    N = trajectory.action.shape[2]
    u = uniform("stas/coalitions", episode_names(trajectory), draw, (N + 1,), device=trajectory.reward.device)
    return u[:, :N].argsort(-1).argsort(-1) < (u[:, N:] * (N + 1)).long()


def fixed_orders(n: int, orders: int) -> Tensor:
    """[orders * n, n] random orders of the agents, the same in every run, each with all its rotations."""
    drawn = uniform("stas/orders", list(range(orders)), 0, (n,)).argsort(-1)
    turned = (torch.arange(n)[:, None] + torch.arange(n)) % n
    return drawn[:, turned].flatten(0, 1)


def joining(orders: Tensor) -> tuple[Tensor, Tensor]:
    """(member [K,n] bool, weight [K,n]) of K coalitions: the mean gain on joining in the orders [M,n] is v @ weight."""
    M, n = orders.shape
    place = orders.argsort(-1)
    count = torch.arange(n + 1)[:, None]
    present = place[:, None] < count  # [M,n+1,n]
    gain = (place[:, None] == count - 1).double() - (place[:, None] == count).double()
    member, which = present.flatten(0, 1).unique(dim=0, return_inverse=True)
    return member, torch.zeros(len(member), n, dtype=torch.float64).index_add(0, which, gain.flatten(0, 1) / M)
