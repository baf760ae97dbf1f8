"""Any PettingZoo ParallelEnv behind the same contract as our own games: batched, branchable, honest about its reward.

A state holds the seed and the moves so far, and what they led to. In a game whose chance comes from its seed, that
determines everything, so `step` can be the pure function that rollouts, replays and oracles expect: the live games
behind it are only a cache. Results are "given the noise", for a replay brings back the game's own random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.base import Env, Step, choice, map_state, refuse_knob, whole
from envs.external_face import Array, Face, Frame, Game, GameError, Maker, read_state
from envs.external_games import Games, Position
from envs.noise import BITS
from envs.snapshots import examine, random_action

LONGEST = 10_000  # steps after which a first random episode is given up
PROBE_STEPS = 200  # random play at the start, at least this long and
PROBE_EPISODES = 8  # ... at most this many episodes, if they are longer than that
TEAM_REWARDS = ("shared", "mean", "sum")


class ExternalState(NamedTuple):
    """Where B games stand: the cause (seed and moves) and what it shows."""

    seed: Tensor  # [B] int64, given to the game's reset
    time: Tensor  # [B] int64, steps played
    moves: Tensor  # [B,T,N] int16, the first `time` of them played
    obs: Tensor  # [B,N,O], padded with zeros; zeros for agents that have left
    mask: Tensor  # [B,N,A] bool, legal actions; [B,0,0] in games without illegal ones
    present: Tensor  # [B,N] bool: the agent acts next
    rewards: Tensor  # [B,N]: each agent's own reward of the last step
    done: Tensor  # [B] bool: nobody is left
    truncated: Tensor  # [B] bool: cut off by the game or by the horizon, not ended: bootstrap from what is seen here
    view: Tensor  # [B,C] the game's `state()`; [B,0] where the observations already say it all


@dataclass(frozen=True, eq=False)
class External(Env[ExternalState]):
    """A PettingZoo ParallelEnv as batched rules.

    The team reward is explicit: "shared" takes the reward that all agents are given (refused at the first step on
    which they differ), "sum" adds the agents' rewards, "mean" divides the sum by N. One process plays all B games side
    by side; those that have ended rest. Plain rollouts step each game in place; only a step from a state that was
    stepped from before makes a game go back (`counterfactuals` says how, `why` says why so).

    Args:
        make: a new game at each call.
        team_reward: "shared", "mean" or "sum".
        horizon: T; 0 finds it by random play. A shorter horizon than the game's own cuts its episodes (`truncated`).
        default_action: what "agent i had done nothing" means here: one action, or one an agent.
        max_games: live games held at once. More rows than this side by side work too, more slowly.
    Raises:
        GameError: a game that cannot be played, or per-agent rewards under "shared".
        KnobError: an argument out of its range.
    """

    make: Maker
    team_reward: str = "shared"
    horizon: int = 0
    default_action: int | tuple[int, ...] = 0
    max_games: int = 4096
    counterfactuals: str | None = field(init=False, default=None)  # "state", "copy", "replay"; None: not possible
    why: str = field(init=False, default="", repr=False)
    face: Face = field(init=False, repr=False)
    games: Games = field(init=False, repr=False)
    _found: bool = field(init=False, repr=False)  # the horizon was found by random play
    _masked: bool = field(init=False, repr=False)
    _last: list[Any] = field(init=False, repr=False)  # the last step asked for, and its answer

    def __post_init__(self) -> None:
        choice(self, TEAM_REWARDS, "team_reward")
        whole(self, 0, None, "horizon")
        whole(self, 1, None, "max_games")
        game = self.make()
        face = Face(game)
        self._set(face=face, _last=[], _found=not self.horizon)
        self._refuse_default_action()
        self._set(horizon=self._probe(game))
        verdict = examine(self.make, face, game)
        self._set(counterfactuals=verdict.mode, why=verdict.why, _masked=face.masked)
        self._set(games=Games(self.make, face, verdict, self.max_games))
        if face.masked:  # only then does this game have the capability
            self._set(action_mask=self._action_mask)

    @property
    def n_agents(self) -> int:
        return self.face.n_agents

    @property
    def n_actions(self) -> int:
        return self.face.n_actions

    @property
    def obs_size(self) -> int:
        return self.face.obs_size

    @property
    def critic_size(self) -> int:
        return self.face.view_size or self.n_agents * self.obs_size

    @property
    def reset_noise_size(self) -> int:
        return 1

    @property
    def step_noise_size(self) -> int:
        return 0

    def reset(self, noise: Tensor) -> ExternalState:
        """noise [B,1]: the game is reset with seed floor(2^24 u)."""
        seeds = (noise[:, 0] * 2**BITS).long()
        frames = self.games.start(seeds.tolist())
        B, T, N = len(frames), self.horizon, self.n_agents
        device = noise.device
        return ExternalState(
            seeds,
            torch.zeros(B, dtype=torch.int64, device=device),
            torch.zeros(B, T, N, dtype=torch.int16, device=device),
            **self._shown(frames, noise),
            truncated=torch.zeros(B, dtype=torch.bool, device=device),
        )

    def truncated(self, state: ExternalState) -> Tensor:
        """[B] bool: a time limit, the game's own or ours, closed the episode here; critics bootstrap."""
        return state.truncated

    def step(self, state: ExternalState, action: Tensor, noise: Tensor) -> Step[ExternalState]:
        """action [B,N]; noise [B,0]: the game's own random numbers follow from its seed.

        Raises:
            GameError: an action outside the space, or rewards that the team reward rule does not allow.
            CounterfactualError: a second step from the same state, in a game that cannot be taken back.
        """
        asked = (state.seed, state.time, state.moves, action)
        if not (self._last and all(map(_same, self._last[0], asked))):
            self._refuse_actions(state, action)
            self._last[:] = [[x.clone() for x in asked], *self._play(state, action)]
        _, after, reward = self._last
        after = map_state(torch.clone, after)
        return Step(after, reward.clone(), after.done.clone())

    def local_rewards(self, state: ExternalState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: the reward that the game gives each agent; free right before or after the same `step`."""
        return self.step(state, action, noise).state.rewards

    def observe(self, state: ExternalState) -> Tensor:
        return state.obs

    def critic_view(self, state: ExternalState) -> Tensor:
        """The game's own `state()` where it has one, else all observations."""
        return state.view if self.face.view_size else state.obs.flatten(1)

    def _action_mask(self, state: ExternalState) -> Tensor:
        """[B,N,A] bool."""
        return state.mask

    def _play(self, state: ExternalState, action: Tensor) -> tuple[ExternalState, Tensor]:
        """The next state and the team reward; games that are over rest and pay 0."""
        reward = torch.zeros_like(state.rewards[:, 0])
        rows = (~state.done & (state.time < self.horizon)).nonzero()[:, 0]
        resting = state._replace(rewards=torch.zeros_like(state.rewards))
        if not len(rows):
            return resting, reward
        moves, time = state.moves[rows].clone(), state.time[rows]
        moves[torch.arange(len(rows)), time] = action[rows].to(moves.dtype)
        positions = _positions(state.seed[rows], time, state.moves[rows])
        last = (time + 1 == self.horizon).tolist()
        frames = self.games.play(positions, action[rows].cpu().numpy().astype(np.int16), last)
        paid = self._team(frames, positions)
        shown = self._shown(frames, state.obs)
        beyond = [end and not frame.done for frame, end in zip(frames, last, strict=True)]
        if self._found and any(beyond):
            raise GameError(
                f"{self.make}: an episode goes on after {self.horizon} steps, the longest that random play had shown; "
                "give horizon="
            )
        cut = torch.tensor([frame.truncated or more for frame, more in zip(frames, beyond, strict=True)])
        new = ExternalState(state.seed[rows], time + 1, moves, **shown, truncated=cut.to(rows.device))
        reward[rows] = torch.as_tensor(paid, dtype=reward.dtype, device=reward.device)
        return map_state(lambda old, now: old.index_copy(0, rows, now), resting, new), reward

    def _shown(self, frames: Sequence[Frame], like: Tensor) -> dict[str, Tensor]:
        """Frames as fields of a state, in the dtype and on the device of `like`."""

        def gather(part: Callable[[Frame], Any], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.array([part(frame) for frame in frames])).to(like.device, dtype)

        if self.face.masked and not self._masked:
            raise GameError(f"{self.make}: an action mask appears that random play at the start had never shown")
        mask = gather(lambda f: f.mask if self._masked else f.mask[:0, :0], torch.bool)
        return {
            "obs": gather(lambda f: f.obs, like.dtype),
            "mask": mask,
            "present": gather(lambda f: f.present, torch.bool),
            "rewards": gather(lambda f: f.rewards, like.dtype),
            "done": gather(lambda f: f.done, torch.bool),
            "view": gather(lambda f: f.view, like.dtype),
        }

    def _team(self, frames: Sequence[Frame], positions: Sequence[Position]) -> Array:
        """[R] team rewards by the rule; refuses rewards that differ under "shared"."""
        rewards = np.array([frame.rewards for frame in frames])
        if self.team_reward != "shared":
            total: Array = rewards.cumsum(1)[:, -1]  # from the first agent to the last, as a loop would add
            return total / self.n_agents if self.team_reward == "mean" else total
        acted = np.array([frame.acted for frame in frames])
        one: Array = rewards[np.arange(len(frames)), acted.argmax(1)]
        differ = (rewards != one[:, None]) & (acted | (rewards != 0.0))
        if differ.any():
            self._refuse_sharing(rewards, acted, differ, positions)
        return one

    def _refuse_sharing(self, rewards: Array, acted: Array, differ: Array, positions: Sequence[Position]) -> None:
        row = int(differ.any(1).argmax())
        first, other = int(acted[row].argmax()), int(differ[row].argmax())
        seed, moves = positions[row]
        step = len(moves) // (2 * self.n_agents)
        fix = "give team_reward=mean (or sum)"
        if getattr(self.make().unwrapped, "local_ratio", None) is not None:  # None: mpe2's games that have no such knob
            fix = "give --env-args local_ratio=0, or team_reward=mean"
        raise GameError(
            f"{self.make}: agents are not paid alike (seed {seed}, step {step}: {self.face.agents[first]} "
            f"{rewards[row, first]:.6g}, {self.face.agents[other]} {rewards[row, other]:.6g}), so there is no shared "
            f"team reward; {fix}"
        )

    def _probe(self, game: Game) -> int:
        """Play random episodes to check the rewards, to see masks and `state()`, and to find the horizon."""
        draw, lengths, cut, views = np.random.default_rng(0), [], 0, []
        for seed in range(PROBE_EPISODES):
            frame, moves = self.face.reset(game, seed), b""
            views.append((read_state(game), self.face.joined(frame)))
            steps = 0
            while not frame.done and steps < (self.horizon or LONGEST):
                action = random_action(frame, draw)
                frame = self.face.step(game, action)
                self._team([frame], [(seed, moves)])
                views.append((read_state(game), self.face.joined(frame)))
                moves += action.tobytes()
                steps += 1
            lengths.append(steps)
            cut = max(cut, steps if frame.truncated else 0)
            if not frame.done and not self.horizon:
                raise GameError(f"{self.make}: random play had not ended after {LONGEST:,} steps; give horizon=")
            if sum(lengths) >= PROBE_STEPS and (self.horizon or cut or len(lengths) > 1):
                break
        self._choose_view(views)
        return self.horizon or self._bound(game, lengths, cut)

    def _choose_view(self, views: list[tuple[Array, Array]]) -> None:
        """A central critic sees `state()` if that has one size and is more than all observations side by side."""
        sizes = {state.size for state, _ in views}
        if len(sizes) == 1 and not all(np.array_equal(state, seen) for state, seen in views):
            self.face.view_size = sizes.pop()

    def _bound(self, game: Game, lengths: list[int], cut: int) -> int:
        """The horizon, from the lengths of random episodes and the longest of those that the game cut off."""
        claimed = getattr(game.unwrapped, "max_cycles", None)
        if cut or len(set(lengths)) == 1:
            return max(lengths)
        if isinstance(claimed, int) and claimed >= max(lengths):
            return claimed
        raise GameError(
            f"{self.make}: random episodes ended by themselves after {min(lengths)} to {max(lengths)} steps, which "
            "does not tell how long one can last; give horizon="
        )

    def _refuse_actions(self, state: ExternalState, action: Tensor) -> None:
        if action.shape != state.present.shape or action.is_floating_point():
            raise GameError(
                f"{self.make}: actions must be whole numbers of shape {tuple(state.present.shape)}, not {action.dtype} "
                f"of shape {tuple(action.shape)}"
            )
        counts = torch.as_tensor(self.face.counts, device=action.device)
        outside = ((action < 0) | (action >= counts)) & state.present
        if outside.any():
            row, agent = outside.nonzero()[0].tolist()
            raise GameError(
                f"{self.make}: action {int(action[row, agent])} of {self.face.agents[agent]} is not allowed; it must "
                f"be in 0..{int(counts[agent]) - 1}"
            )

    def _refuse_default_action(self) -> None:
        counts, default = self.face.counts.tolist(), self.default_action
        actions = (default,) * len(counts) if isinstance(default, int) else tuple(default)
        if len(actions) != len(counts) or not all(0 <= a < n for a, n in zip(actions, counts, strict=True)):
            refuse_knob(self, "default_action", f"one action, or one an agent, within the action counts {counts}")

    def _set(self, **values: Any) -> None:
        """Set fields once, at construction (the dataclass is frozen)."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def _positions(seed: Tensor, time: Tensor, moves: Tensor) -> list[Position]:
    """Rows of a state as positions."""
    played = moves.cpu().numpy()
    return [(s, played[row, :t].tobytes()) for row, (s, t) in enumerate(zip(seed.tolist(), time.tolist(), strict=True))]
