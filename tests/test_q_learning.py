"""Q-learning and value decomposition: mixers keep their promises, targets are the textbook's, known games come out."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tiny_mdp import LimitedTiny, MaskedTiny, TinyMdp
from torch import Tensor, nn

import marl
from benchmarks.methods import METHODS
from envs.base import Env
from envs.matrix_game import MatrixGame
from marl.credit.base import ChainError, Context
from marl.credit.spatial.decomposition import Decomposition
from marl.credit.spatial.team import Team
from marl.experiment import Experiment, Method, learn
from marl.learn.q_learning import Memory, QLearning, QTraining, memory_of, values
from marl.mixing import MIXERS, Mixer
from marl.rollout import rollout
from marl.types import Trajectory

SEEDS = (3, 8)
every_mixer = pytest.mark.parametrize("name", MIXERS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Mixers.


def asked(name: str, game: Env[Any], batch: int = 40) -> tuple[Mixer, Tensor, Tensor]:
    """A mixer with Q tables [2 * batch, N, A] and views to try it on."""
    mixer = MIXERS[name](game, SEEDS, 8)
    q = 3 * random(2 * batch, game.n_agents, game.n_actions)
    return mixer, q, random(2 * batch, game.critic_size, seed=1)


def igm_holds(mixer: nn.Module, q: Tensor, view: Tensor) -> bool:
    """Is the best joint action of Q_tot, over all of them, each agent's own best?"""
    N, A = q.shape[1:]
    totals = []
    for joint in product(range(A), repeat=N):
        action = torch.tensor(joint).expand(len(q), N)
        totals.append(mixer(q.gather(-1, action[..., None])[..., 0], q.amax(-1), view, action))
    table = torch.stack(totals, -1)
    own = (q.argmax(-1) * torch.tensor([A ** (N - 1 - i) for i in range(N)])).sum(-1)
    return bool((table.argmax(-1) == own).all())


@every_mixer
def test_igm_by_enumeration(name: str) -> None:
    """The joint action that is best for Q_tot consists of each agent's own best action, in any state."""
    assert igm_holds(*asked(name, TinyMdp(3, 4)))


def test_igm_check_notices_a_mixer_without_it() -> None:
    """The control: a mixer that wants what an agent does not."""

    class Contrary(nn.Module):
        def forward(self, taken: Tensor, best: Tensor, view: Tensor, action: Tensor) -> Tensor:
            return taken[..., 1:].sum(-1) - taken[..., 0]

    _, q, view = asked("vdn", TinyMdp(3, 4))
    assert not igm_holds(Contrary(), q, view)


@pytest.mark.parametrize("name", ["vdn", "qmix"])
def test_monotonic_in_every_agent(name: str) -> None:
    """dQ_tot/dQ_i >= 0 wherever asked; for the sum it is 1."""
    game = TinyMdp(3, 4)
    mixer, q, view = asked(name, game)
    taken = q[..., 0].clone().requires_grad_()
    action = torch.zeros(taken.shape, dtype=torch.int64)
    (slope,) = torch.autograd.grad(mixer(taken, q.amax(-1), view, action).sum(), taken)
    assert bool((slope >= 0).all()) and bool((slope > 0).any())
    assert name != "vdn" or torch.equal(slope, torch.ones_like(slope))


def test_qplex_need_not_be_monotonic_in_the_joint_action_but_loses_nothing_at_the_best() -> None:
    """At the agents' own best actions lambda drops out; elsewhere it depends on who else does what."""
    game = TinyMdp(3, 4)
    mixer, q, view = asked("qplex", game)
    best, own = q.amax(-1), q.argmax(-1)
    here = mixer(best, best, view, own)
    assert torch.allclose(here, mixer(best, best, view, (own + 1) % game.n_actions))
    worse = best - 1
    losses = [mixer(worse, best, view, torch.full_like(own, c)) - here for c in range(game.n_actions)]
    assert all(bool((x < 0).all()) for x in losses) and not torch.allclose(losses[0], losses[1])


# Targets.


def batch_of(game: Env[Any], how: QLearning) -> tuple[QTraining, Memory, Trajectory]:
    """Networks that have opinions and copies that differ, on recorded random episodes."""
    training = QTraining(how, game, SEEDS)
    for k, p in enumerate(training.old_net.parameters()):
        p.data += 0.3 * random(*p.shape, seed=k)
    tau = rollout(game, None, 5, SEEDS)
    signal = tau.reward if how.mixer != "none" else random(*tau.action.shape, seed=9)
    rows = memory_of(game, tau, signal, len(SEEDS))
    return training, Memory(*(x.flatten(1, 2) for x in rows)), tau


@pytest.mark.parametrize("mixer", ["none", *MIXERS])
@pytest.mark.parametrize("double", [True, False])
def test_loss_is_the_textbooks(mixer: str, double: bool) -> None:
    """One transition at a time: y = r + gamma Q^-(s', argmax), nothing after an end or at the horizon, masks kept."""
    for game in (TinyMdp(2, 4, ends=0.4), MaskedTiny(ends=0.3), LimitedTiny(ends=0.5)):
        training, rows, tau = batch_of(game, QLearning(mixer=mixer, gamma=0.9, double=double))
        with torch.no_grad():
            found = training.loss(rows)
            want = by_hand(training, rows, tau, game)
        assert torch.allclose(found, want, atol=1e-5), (game, found, want)


def by_hand(training: QTraining, rows: Memory, tau: Trajectory, game: Env[Any]) -> Tensor:
    """[S] the same, a step of an episode at a time."""
    T, B = tau.reward.shape
    mask = [None if tau.mask is None else rows.mask[t] for t in range(T + 1)]
    now = [values(training.net, rows.obs[t], mask[t]) for t in range(T + 1)]
    old = [values(training.old_net, rows.obs[t], mask[t]) for t in range(T + 1)]
    sums, counts = torch.zeros(len(SEEDS)), torch.zeros(len(SEEDS))
    for t, b in product(range(T), range(B)):
        if not tau.alive[t, b]:
            continue
        s = b // (B // len(SEEDS))
        chooser = now if training.how.double else old
        chosen = chooser[t + 1].argmax(-1)
        after = old[t + 1].gather(-1, chosen[..., None])[..., 0]
        said = now[t].gather(-1, rows.action[t][..., None])[..., 0]
        if training.mixer is not None and training.old_mixer is not None:
            after = training.old_mixer(after, old[t + 1].amax(-1), rows.view[t + 1], chosen)[:, None]
            said = training.mixer(said, now[t].amax(-1), rows.view[t], rows.action[t])[:, None]
        ended = bool(tau.done[t, b]) or t == T - 1
        cut = ended and isinstance(game, LimitedTiny) and bool(game.truncated(tau.final)[b])
        follow = after[b] if cut or not ended else torch.zeros_like(after[b])
        sums[s] += (said[b] - (rows.signal[t, b] + 0.9 * follow)).square().sum()
        counts[s] += len(said[b])
    return sums / counts


def test_least_squares_of_a_sum() -> None:
    """VDN under uniform data on [[0,1],[1,8]] is the additive table nearest to it: [[-1.5,2.5],[2.5,6.5]]."""
    game = MatrixGame([[0, 1], [1, 8]])
    training = QTraining(QLearning(mixer="vdn", lr=0.03), game, (0,))
    action = torch.tensor(list(product(range(2), repeat=2)))
    tau = rollout(game, None, 4, 0)._replace(action=action[None], reward=torch.tensor([[0.0, 1.0, 1.0, 8.0]]))
    rows = Memory(*(x.flatten(1, 2) for x in memory_of(game, tau, tau.reward, 1)))
    for _ in range(600):
        training.optimizer.zero_grad()
        training.loss(rows).sum().backward()
        training.optimizer.step()
    q = values(training.net, tau.obs[0])[0].detach()
    table = q[0][:, None] + q[1][None]
    assert torch.allclose(table, torch.tensor([[-1.5, 2.5], [2.5, 6.5]]), atol=1e-2)


# Exploration and the buffer.


def test_exploration_is_what_it_says() -> None:
    """Epsilon is spread over legal actions, a temperature makes a softmax; both fall linearly, then stay."""
    game = MaskedTiny()
    tau = rollout(game, None, 5, SEEDS)
    assert tau.mask is not None
    for kind in ("epsilon", "boltzmann"):
        how = QLearning(exploration=kind, start=0.8, end=0.2, over=0.5)
        policy = QTraining(how, game, SEEDS).policy
        assert [round(how.level(x), 6) for x in (0, 0.25, 0.5, 1.0)] == [0.8, 0.5, 0.2, 0.2]
        probs, q = policy(tau.obs, tau.mask), values(policy.net, tau.obs, tau.mask)
        assert torch.allclose(probs.sum(-1), torch.ones(probs.shape[:-1])) and not probs[~tau.mask].any()
        if kind == "boltzmann":
            assert torch.allclose(probs, (q / 0.8).softmax(-1))
        else:
            few = 0.8 / tau.mask.sum(-1, keepdim=True)
            best = nn.functional.one_hot(q.argmax(-1), game.n_actions) * 0.2
            assert torch.allclose(probs, torch.where(tau.mask, few + best, torch.zeros(())))


def test_the_buffer_is_a_ring() -> None:
    """The oldest episodes make room; only episodes that were written are drawn."""
    game = TinyMdp(2, 3)
    training = QTraining(QLearning(episodes=4, capacity=6, batch=64), game, SEEDS)
    for k in range(2):
        tau = rollout(game, None, 4, SEEDS, first_episode=4 * k)
        training._keep(memory_of(game, tau, torch.full((3, 8, 2), float(k)), 2))
        drawn = training._drawn(training._choice(k)[0])
        assert set(drawn.signal.unique().tolist()) <= set(range(k + 1))
    assert training.buffer is not None
    assert training.buffer.signal[0, 0, :, 0].tolist() == [1, 1, 0, 0, 1, 1]
    early = QTraining(QLearning(episodes=4, capacity=6, batch=64), game, SEEDS)
    early._keep(memory_of(game, tau, torch.ones(3, 8, 2), 2))
    assert early._drawn(early._choice(0)[0]).signal.min() == 1  # the empty places are never drawn


@pytest.mark.parametrize("mixer", ["none", *MIXERS])
def test_seeds_train_apart(mixer: str) -> None:
    """Seed 8's values are the same alone and beside seed 3."""
    game, said = TinyMdp(2, 4, ends=0.3), []
    chain = (Team,) if mixer == "none" else ()
    for seeds in ([8], [3, 8]):
        e = Experiment(game, Method(chain, "spatial", QLearning(mixer=mixer, episodes=8)), seeds, 8 * 4 * 6, points=1)
        *_, last = learn(e)
        obs = torch.eye(game.obs_size).reshape(-1, 1, 1, game.obs_size).expand(-1, len(seeds), 2, -1)
        said.append(values(last.training.net, obs)[:, -1].detach())  # type: ignore[attr-defined]
    assert torch.allclose(*said, atol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"mixer": "qmax"}, "mixer='qmax' is not allowed; it must be one of none, vdn, qmix, qplex"),
        ({"exploration": "heat"}, "exploration='heat' is not allowed; it must be one of epsilon, boltzmann"),
        ({"steps": 0}, "steps=0 is not allowed; it must be 1 or more"),
        ({"capacity": 8}, "capacity=8 is not allowed; it must be 32 or more"),
    ],
)
def test_bad_settings(knobs: dict[str, Any], words: str) -> None:
    """One sentence, before any work."""
    with pytest.raises(ValueError, match=words):
        QLearning(**knobs)


def test_learners_take_their_own_kind_of_signal() -> None:
    """IQL follows any agent's reward, a mixer the team's; the refusal names the kinds."""
    with pytest.raises(ChainError, match=r"must end in RAW or TEAM, but Team gives AGENT"):
        Method((Team,), "spatial", QLearning(mixer="vdn"))
    with pytest.raises(ChainError, match=r"needs at least one operator, from RAW to AGENT"):
        Method((), "spatial", QLearning())


# What they learn.


def test_two_step_game_as_published() -> None:
    """Rashid et al. (2018): a sum cannot see the 8 behind the second branch, a monotonic mixer can."""
    game, found = MatrixGame("two_step"), {}
    for mixer in ("vdn", "qmix"):
        how = QLearning(mixer=mixer, gamma=0.99, start=1.0, end=1.0)
        *_, last = learn(Experiment(game, Method((), "spatial", how), range(2), 64 * 150, points=1))
        found[mixer] = rollout(game, last.actor, 1, [0, 1], purpose="final").reward.sum(0).tolist()
    assert found == {"vdn": [7.0, 7.0], "qmix": [8.0, 8.0]}


def test_credit_of_a_sum_is_each_agents_own_advantage() -> None:
    """With VDN all other agents' values cancel: Q_i(a_i) - E_pi Q_i; with any mixer its mean under pi is zero."""
    game = TinyMdp(3, 4, ends=0.3)
    tau = rollout(game, None, 6, SEEDS)
    for mixer in MIXERS:
        part = Decomposition(Context(game, SEEDS), mixer)
        with torch.no_grad():
            credit = part(tau, tau.reward)
            mean = torch.zeros_like(credit)
            for i, c in product(range(3), range(game.n_actions)):
                action = tau.action.clone()
                action[..., i] = c
                mean[..., i] += tau.probs[..., i, c] * part(tau._replace(action=action), tau.reward)[..., i]
            q = part._own(tau)
            own = q.gather(-1, tau.action[..., None])[..., 0] - (tau.probs * q).sum(-1)
        assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-5)
        assert torch.allclose(credit, own, atol=1e-5) == (mixer == "vdn")


def test_from_the_command_lines_names() -> None:
    """Every named learner of values runs, and is judged by the credit that it assigns itself."""
    game = marl.load("walking_robot", n_agents=2, horizon=8, delay=2, window=3)
    for name in ("IQL", "IQL on difference", "IQL Boltzmann", "VDN", "QMIX", "QPLEX"):
        rows = list(marl.run(Experiment(game, METHODS[name], range(2), 2000, points=1, episodes=16, final_episodes=4)))
        judged = [row.value for row in rows if row.metric == "credit_spearman"]
        assert len(judged) == 4 and any(value == value for value in judged), name
