"""The pocket watch: one decision at the first step, its worth known after fifty, under costs that it did not cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import Env, Step, real, whole

REPAIR, LEAVE = 0, 1
PRICES = (18.0, 28.0, 31.0, 59.0)  # of the four brands, known and paid at the end
REPAIR_COSTS = (1.0, 4.0, 5.0, 24.5), (2.0, 2.0, 2.0, 1.0)  # mean and deviation, paid at the decision
PACKING_COSTS = (0.5, 2.5, 4.5, 18.0), (1.5, 1.5, 1.5, 1.5)  # brand-related costs of the delivery, paid at the end
EVENTS = (0.1, 0.1), (0.05, 7.0)  # chance a step and cost of a traffic jam, and of a flat tire
EDGE = 2.0**-25  # half a step of the noise: keeps 0 inside the normal distribution


class WatchState(NamedTuple):
    """A watch on its way."""

    t: Tensor  # [B] int64, the step about to be taken
    brand: Tensor  # [B] int64
    repaired: Tensor  # [B] bool
    events: Tensor  # [B,2] jams and flat tires so far; its dtype is the game's
    latest: Tensor  # [B,2] those of the last step


@dataclass(frozen=True)
class WatchRepair(Env[WatchState]):
    """Repair this watch or leave it (step 0)? Then it travels for T steps, meets jams and flat tires, and is sold.

    As published: four brands, equally likely, their prices and costs; repairing costs at once, all else is paid at
    the last step; jams (.1, chance .1) and flat tires (7, chance .05) may come at every step, T = 50, and cost 18 on
    average. Profits of a repair are -1.5, 3.5, 3.5 and -1.5: two brands should be repaired. After the first step
    nothing can be done. An agent sees brand, repaired, jams and tires so far, and t.

    Of the source we follow the program where its text differs: "variance" is used as a standard deviation, and the
    second brand's repair costs 4. `critic_view` tells what the last step brought, in place of the sums: the source
    hands its sequence network the same differences. Events of the last step come too late to be seen by it. The
    source's network is also given returns in units of 10; here the game pays in them.

    Source: demonstration task of Arjona-Medina et al., "RUDDER: return decomposition for delayed rewards" (2019), in
    their published program, which also has the numbers of episodes.

    Raises:
        KnobError: a horizon below 1, or a unit that is not positive.
    """

    horizon: int = 50  # steps T of the way
    unit: float = 10.0  # rewards are paid in units of so much

    def __post_init__(self) -> None:
        whole(self, 1, None, "horizon")
        real(self, 0.01, None, "unit")

    @property
    def n_agents(self) -> int:
        return 1

    @property
    def n_actions(self) -> int:
        return 2

    @property
    def obs_size(self) -> int:
        return 8

    @property
    def critic_size(self) -> int:
        return 8

    @property
    def reset_noise_size(self) -> int:
        return 1

    @property
    def step_noise_size(self) -> int:
        return 4

    @property
    def default_action(self) -> int:
        return LEAVE

    @property
    def exogenous(self) -> tuple[str, ...]:
        """All but the decision."""
        return ("t", "brand", "events", "latest")

    @property
    def profits(self) -> tuple[float, ...]:
        """Expected return of repairing each brand: price - repair - packing - T sum_e chance_e cost_e."""
        way = self.horizon * sum(chance * cost for chance, cost in EVENTS)
        each = zip(PRICES, REPAIR_COSTS[0], PACKING_COSTS[0], strict=True)
        return tuple((price - repair - packing - way) / self.unit for price, repair, packing in each)

    @property
    def optimal_return(self) -> float:
        """Repair what pays: the mean of max(profit, 0) over brands."""
        return sum(max(p, 0.0) for p in self.profits) / len(PRICES)

    @property
    def random_return(self) -> float:
        """Half the mean profit."""
        return sum(self.profits) / len(PRICES) / 2

    def reset(self, noise: Tensor) -> WatchState:
        """A watch of a random brand."""
        brand = (noise[:, 0] * len(PRICES)).long()
        nothing = noise.new_zeros(len(noise), 2)
        return WatchState(torch.zeros_like(brand), brand, torch.zeros_like(brand, dtype=torch.bool), nothing, nothing)

    def step(self, state: WatchState, action: Tensor, noise: Tensor) -> Step[WatchState]:
        """Decide at the first step, travel at all, sell at the last."""
        first, last = state.t == 0, state.t == self.horizon - 1
        repaired = torch.where(first, action[:, 0] == REPAIR, state.repaired)
        chance, cost = noise.new_tensor(EVENTS).T
        latest = (noise[:, :2] < chance).to(noise.dtype)
        events = state.events + latest
        sold = noise.new_tensor(PRICES)[state.brand] - self._cost(PACKING_COSTS, state, noise[:, 3])
        sold = sold - (events * cost).sum(-1)
        paid = torch.where(last, sold, 0) - torch.where(first, self._cost(REPAIR_COSTS, state, noise[:, 2]), 0)
        reward = torch.where(repaired, paid / self.unit, 0)
        return Step(WatchState(state.t + 1, state.brand, repaired, events, latest), reward, torch.zeros_like(last))

    def _cost(self, table: tuple[tuple[float, ...], tuple[float, ...]], state: WatchState, u: Tensor) -> Tensor:
        """[B]: a normal cost of the brand, from uniform noise."""
        mean, deviation = u.new_tensor(table)[:, state.brand]
        return mean + deviation * normal(u)

    def action_mask(self, state: WatchState) -> Tensor:
        """[B,1,2]: once on its way a watch is left alone."""
        may = state.t == 0
        return torch.stack((may, torch.ones_like(may)), -1)[:, None]

    def observe(self, state: WatchState) -> Tensor:
        """Brand, repaired, jams/5, tires/5, t/T."""
        return torch.cat((self._watch(state), state.events / 5, self._clock(state)), -1)[:, None]

    def critic_view(self, state: WatchState) -> Tensor:
        """Brand, repaired, what the last step brought, t/T."""
        return torch.cat((self._watch(state), state.latest, self._clock(state)), -1)

    def _watch(self, state: WatchState) -> Tensor:
        """[B,5]."""
        brand = torch.nn.functional.one_hot(state.brand, len(PRICES))
        return torch.cat((brand, state.repaired[:, None].long()), -1).to(state.events.dtype)

    def _clock(self, state: WatchState) -> Tensor:
        """[B,1]."""
        return state.t.to(state.events.dtype)[:, None] / self.horizon

    def scripted_action(self, state: WatchState) -> Tensor:
        """[B,1]: repair, at the first step, the brands that pay."""
        pays = torch.tensor(self.profits, device=state.t.device)[state.brand] > 0
        return torch.where(pays & (state.t == 0), REPAIR, LEAVE)[:, None]


def normal(u: Tensor) -> Tensor:
    """Standard normal numbers by inverse CDF of uniform ones."""
    return torch.special.ndtri(u + EDGE)
