"""A population is its members: forward, backward and clipping equal S * C separate torch networks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_mdp import LimitedTiny, MaskedTiny, TinyMdp
from torch import Tensor, nn

from envs.base import flatten
from marl import networks
from marl.critic import ActionValue, Fit, Value, error, lambda_returns, mean_over_live, next_values
from marl.minibatch import orders, schedule, shuffled, subset
from marl.networks import (
    Population,
    Running,
    clip_per_seed,
    from_per_agent,
    from_per_seed,
    in_pieces,
    per_agent,
    per_seed,
)
from marl.policy import Actor
from marl.rollout import rollout

SQUASH: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def separate(population: Population, member: int, activation: str | None = None) -> nn.Sequential:
    """Member number s * C + c of a population as a plain torch network with the same weights."""
    squash = SQUASH[activation or population.activation]
    layers: list[nn.Module] = []
    for weight, bias in zip(population.weights, population.biases, strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight[member])
            linear.bias.copy_(bias[member, :, 0])
        layers += [linear, squash()]
    return nn.Sequential(*layers[:-1])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("sizes", [(5, 3), (5, 7, 3), (4, 6, 8, 1)], ids=str)
def test_population_equals_separate_networks(
    sizes: tuple[int, ...], activation: str, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, weight gradients and input gradients of all S * C members, to 1e-6; also a piece of rows at a time."""
    S, C, R = 3, 2, 50
    monkeypatch.setattr(networks, "tier", lambda: "torch")
    if pieces:
        monkeypatch.setattr(networks, "CACHE_ROWS", 7 * S * C)
    net = Population("test", range(S), C, sizes, activation)
    x = random(S, C, sizes[0], R).requires_grad_()
    weight = random(S, C, sizes[-1], R, seed=1)
    out = net(x)
    (out.square() * weight).sum().backward()
    assert out.shape == (S, C, sizes[-1], R) and x.grad is not None
    for k in range(S * C):
        s, c = divmod(k, C)
        mlp, rows = separate(net, k), x[s, c].detach().T.clone().requires_grad_()
        y = mlp(rows)
        (y.square() * weight[s, c].T).sum().backward()
        assert torch.allclose(out[s, c].T, y, atol=1e-6)
        assert rows.grad is not None and torch.allclose(x.grad[s, c].T, rows.grad, atol=1e-5)
        linears = [layer for layer in mlp if isinstance(layer, nn.Linear)]
        for linear, w, b in zip(linears, net.weights, net.biases, strict=True):
            assert w.grad is not None and b.grad is not None
            assert torch.allclose(w.grad[k], linear.weight.grad, rtol=1e-5, atol=1e-5)
            assert torch.allclose(b.grad[k, :, 0], linear.bias.grad, rtol=1e-5, atol=1e-5)


def test_rows_were_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case "in pieces" above really is one: the graph goes through the function that recomputes."""
    monkeypatch.setattr(networks, "tier", lambda: "torch")
    net, x = Population("test", [0], 2, (4, 5, 3)), random(1, 2, 4, 30)
    assert "InPieces" not in _graph(net(x))
    monkeypatch.setattr(networks, "CACHE_ROWS", 14)
    assert "InPieces" in _graph(net(x))


def _graph(x: Tensor) -> str:
    names, nodes = [], [x.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.append(type(node).__name__)
            nodes += [parent for parent, _ in node.next_functions]
    return " ".join(names)


@pytest.mark.parametrize("piece", [1, 3, 8, 100])
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, False)], ids=str)
def test_in_pieces_equals_plain_autograd(piece: int, wants: tuple[bool, bool]) -> None:
    """Any row-wise network with several inputs: outputs and all gradients, in float64, to 1e-12."""

    def network(rows: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        (x, y), (w, v) = rows, parameters
        return torch.tanh(w @ x) * (v @ y).sin()

    def gradients(call: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> list[Tensor | None]:
        x = random(2, 4, 20, dtype=torch.float64).requires_grad_(wants[0])
        y = random(2, 3, 20, seed=1, dtype=torch.float64).requires_grad_(wants[1])
        w = random(2, 5, 4, seed=2, dtype=torch.float64).requires_grad_()
        v = random(2, 5, 3, seed=3, dtype=torch.float64).requires_grad_()
        out = call((x, y), (w, v))
        (out * random(2, 5, 20, seed=4, dtype=torch.float64)).sum().backward()
        return [out.detach(), x.grad, y.grad, w.grad, v.grad]

    plain = gradients(network)
    pieces = gradients(lambda rows, parameters: in_pieces(network, rows, parameters, piece))
    for one, other, wanted in zip(plain, pieces, (True, *wants, True, True), strict=True):
        assert (one is not None) == (other is not None) == wanted
        if one is not None and other is not None:
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_shared_network_serves_every_group() -> None:
    """One copy, three groups: the same function for each, and gradients add up."""
    net = Population("test", [0, 1], 1, (4, 6, 2))
    x = random(2, 3, 4, 9)
    out = net(x)
    out.square().sum().backward()
    for s in range(2):
        mlp = separate(net, s)
        y = torch.stack([mlp(x[s, c].T).T for c in range(3)])
        y.square().sum().backward()
        assert torch.allclose(out[s], y, atol=1e-6)
        first = mlp[0]
        assert isinstance(first, nn.Linear) and net.weights[0].grad is not None
        assert torch.allclose(net.weights[0].grad[s], first.weight.grad, atol=1e-5)


def test_first_weights() -> None:
    """Uniform in +-sqrt(6/fan_in), the last layer in +-gain/sqrt(fan_in); seeds, copies and names all differ."""
    net = Population("test", range(4), 3, (24, 40, 8), last_gain=0.5)
    for layer, bound in enumerate(((6 / 24) ** 0.5, 0.5 / 40**0.5)):
        for p in (net.weights[layer].detach(), net.biases[layer].detach()):
            assert float(p.abs().max()) <= bound and float(p.abs().max()) > 0.9 * bound
            assert abs(float(p.mean())) < 0.1 * bound
            assert len({round(float(member.flatten()[0]), 7) for member in p}) == 12
    again, other = Population("test", [2], 3, (24, 40, 8), last_gain=0.5), Population("name", [2], 3, (24, 40, 8))
    assert torch.equal(again.weights[0], net.weights[0][6:9])
    assert not torch.equal(other.weights[0], again.weights[0])


def test_unknown_activation_is_refused() -> None:
    """One sentence."""
    with pytest.raises(ValueError, match="activation='gelu' is not allowed; it must be one of relu, tanh"):
        Population("test", [0], 1, (2, 2), "gelu")


@pytest.mark.parametrize("copies", [1, 3])
def test_clipping_is_per_seed(copies: int) -> None:
    """Each seed's gradient is clipped by torch's own rule over its own parameters; a small one is left alone."""
    net = Population("test", range(4), copies, (5, 6, 2))
    scale = torch.tensor([0.01, 1.0, 100.0, 0.0])
    for k, p in enumerate(net.parameters()):
        p.grad = random(*p.shape, seed=k) * scale.repeat_interleave(copies)[:, None, None]
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    clip_per_seed(list(net.parameters()), 4, 2.0)
    for s in range(4):
        own = [nn.Parameter(torch.zeros_like(g[s * copies : (s + 1) * copies])) for g in before]
        for p, g in zip(own, before, strict=True):
            p.grad = g[s * copies : (s + 1) * copies].clone()
        norm = float(nn.utils.clip_grad_norm_(own, 2.0))
        for p, q, g in zip(net.parameters(), own, before, strict=True):
            mine = p.grad[s * copies : (s + 1) * copies]  # type: ignore[index]
            assert torch.allclose(mine, q.grad, rtol=1e-5)  # type: ignore[arg-type]
            if norm < 2:
                assert torch.equal(mine, g[s * copies : (s + 1) * copies])
    assert len({bool((b * 0 == b).all()) for b in before}) == 1  # nothing was NaN
    nothing = Population("test", [0], 1, (2, 2))
    clip_per_seed(list(nothing.parameters()), 1, 1.0)  # no gradients, no harm
    assert all(p.grad is None for p in nothing.parameters())


@pytest.mark.parametrize("lead", [(), (7,), (2, 5)], ids=str)
def test_foldings_round_trip(lead: tuple[int, ...]) -> None:
    """per_agent and per_seed lose nothing, keep seeds and agents apart, and their rows run over lead and episodes."""
    S, E, N, F = 3, 4, 2, 5
    x = random(*lead, S * E, N, F)
    folded = per_agent(x, S)
    assert torch.equal(from_per_agent(folded, lead, S * E), x)
    flat = x.reshape(-1, S, E, N, F)
    for s in range(S):
        for i in range(N):
            assert torch.equal(folded[s, i].T, flat[:, s, :, i].reshape(-1, F))
    y = x[..., 0, :]
    folded = per_seed(y, S)
    assert torch.equal(from_per_seed(folded, lead, S * E), y)
    for s in range(S):
        assert torch.equal(folded[s, 0].T, y.reshape(-1, S, E, F)[:, s].reshape(-1, F))


# What is built of them.


@pytest.mark.parametrize("shared", [False, True], ids=["one an agent", "shared"])
@pytest.mark.parametrize("game", [TinyMdp(3), MaskedTiny()], ids=["tiny", "masked"])
def test_actor_is_a_softmax_of_separate_networks(game: TinyMdp, shared: bool) -> None:
    """pi_i = softmax f_i(o_i) over legal actions, f_i one's own, or the shared one that also reads who asks."""
    S, E, N = 2, 3, game.n_agents
    actor = Actor(game, [4, 7], (6, 5), shared, "tanh")
    with torch.no_grad():
        for p in actor.parameters():
            p.mul_(5)
    tau = rollout(game, None, E, [4, 7])
    with torch.no_grad():
        probs = actor(tau.obs, tau.mask)
        for b, i in ((b, i) for b in range(S * E) for i in range(N)):
            s = b // E
            mlp, x = separate(actor.net, s if shared else s * N + i), tau.obs[:, b, i]
            if shared:
                x = torch.cat((x, torch.eye(N)[i].expand(len(x), -1)), -1)
            logits = mlp(x)
            if tau.mask is not None:
                logits[~tau.mask[:, b, i]] = -torch.inf
            assert torch.allclose(probs[:, b, i], logits.softmax(-1), atol=1e-6)
        assert torch.allclose(actor(tau.obs[0], None if tau.mask is None else tau.mask[0]), probs[0], atol=1e-6)
    if tau.mask is not None:
        assert not probs[~tau.mask].any()
    folded = actor.fold(tau.obs)
    assert folded.shape[:2] == (S, 1 if shared else N)
    assert torch.equal(actor.unfold(folded, tau.obs.shape[:1], S * E), tau.obs)


def test_actor_starts_near_uniform() -> None:
    """No policy begins with an opinion."""
    game = TinyMdp(4, n_actions=3)
    actor, tau = Actor(game, range(3)), rollout(game, None, 8, range(3))
    assert float((actor(tau.obs) - 1 / 3).detach().abs().max()) < 0.01


@pytest.mark.parametrize("central", [False, True], ids=["own view", "central"])
def test_value_equals_separate_networks(central: bool) -> None:
    """V_i(o_i) by a network an agent, or V(critic_view) by one network a seed with an output an agent."""
    game = TinyMdp(3)
    value, tau = Value(game, (0, 1), central, Fit(hidden=(6,))), rollout(game, None, 4, [0, 1])
    with torch.no_grad():
        found, end = value(tau), value.final(tau.final)
        view = game.critic_view(flatten(tau.state)).unflatten(0, (3, 8))
        for b in range(8):
            for i in range(3):
                member = separate(value.net, b // 4 if central else b // 4 * 3 + i)
                x = view[:, b] if central else tau.obs[:, b, i]
                last = game.critic_view(tau.final)[b] if central else game.observe(tau.final)[b, i]
                pick = i if central else 0
                assert torch.allclose(found[:, b, i], member(x)[:, pick], atol=1e-6)
                assert torch.allclose(end[b, i], member(last)[pick], atol=1e-6)


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("hidden", [(6,), (6, 5)], ids=str)
@pytest.mark.parametrize("game", [TinyMdp(3, n_actions=3), TinyMdp(1)], ids=["three agents", "one agent"])
def test_action_value_equals_the_naive_network(
    game: TinyMdp, hidden: tuple[int, ...], pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q_i(s, (a_-i, c)) of a plain network that reads (view, the others' actions, one-hot i): values and gradients."""
    N, A, E = game.n_agents, game.n_actions, 4
    q, tau = ActionValue(game, (0, 1), Fit(hidden=hidden, activation="tanh")), rollout(game, None, E, [0, 1])
    if pieces:
        monkeypatch.setattr(sys.modules["marl.critic"], "CACHE_ROWS", 3 * 2 * N)
    view = game.critic_view(flatten(tau.state)).unflatten(0, (3, 2 * E))
    taken = nn.functional.one_hot(tau.action, A).float()
    found = q(tau)
    weight = random(*found.shape)
    (found * weight).sum().backward()
    for s in range(2):
        w, b, who, one = (p[s] for p in (q.first.weights[0], q.first.biases[0], q.agent.weights[0], q.agent.biases[0]))
        first = nn.Linear(game.critic_size + N * A + N, hidden[0])
        with torch.no_grad():
            first.weight.copy_(torch.cat((w, who), 1))
            first.bias.copy_((b + one)[:, 0])
        naive = nn.Sequential(first, nn.Tanh(), separate(q.rest, s, "tanh"))
        mine = slice(s * E, (s + 1) * E)
        for i in range(N):
            others = taken[:, mine].clone()
            others[:, :, i] = 0
            me = torch.eye(N)[i].expand(3, E, N)
            out = naive(torch.cat((view[:, mine], others.flatten(2), me), -1))
            assert torch.allclose(found[:, mine, i], out, atol=1e-5)
            (out * weight[:, mine, i]).sum().backward()
        grads = torch.cat((q.first.weights[0].grad[s], q.agent.weights[0].grad[s]), 1)  # type: ignore[index]
        assert torch.allclose(grads, first.weight.grad, atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(q.rest.weights[0].grad[s], naive[2][0].weight.grad, atol=1e-5)  # type: ignore[index]


def test_action_value_is_blind_to_ones_own_action() -> None:
    """Q_i(s, (a_-i, .)) is one table whatever i did; it does change with what the others did."""
    game = TinyMdp(3)
    q, tau = ActionValue(game, (0,), Fit()), rollout(game, None, 6)
    other = tau.action.clone()
    other[..., 1] = 1 - other[..., 1]
    with torch.no_grad():
        before, after = q(tau), q(tau._replace(action=other))
    assert torch.allclose(before[..., 1, :], after[..., 1, :], atol=1e-6)
    assert not torch.allclose(before[..., 0, :], after[..., 0, :], atol=1e-3)


# Targets of critics.


def test_only_a_time_limit_bootstraps() -> None:
    """The next value: V of the next state inside an episode, 0 behind an end or the horizon, V behind a time limit."""
    game = LimitedTiny(horizon=4, ends=0.5)
    for central in (False, True):
        value, tau = Value(game, (0,), central, Fit()), rollout(game, None, 64)
        with torch.no_grad():
            now = value(tau)
            found = next_values(value, tau, now)
            beyond = value.final(tau.final)
        kinds = set()
        for t in range(4):
            for b in tau.alive[t].nonzero()[:, 0].tolist():
                if bool(tau.done[t, b]):
                    kind = "cut" if bool(tau.final.cut[b]) else "end"
                    truth = beyond[b] if kind == "cut" else torch.zeros(2)
                else:
                    kind = "horizon" if t == 3 else "inside"
                    truth = torch.zeros(2) if t == 3 else now[t + 1, b]
                kinds.add(kind)
                assert torch.equal(found[t, b], truth)
        assert kinds == {"cut", "end", "horizon", "inside"}
    ends = TinyMdp(horizon=4, ends=0.5)
    plain, tau = Value(ends, (0,), False, Fit()), rollout(ends, None, 64)
    with torch.no_grad():
        assert not next_values(plain, tau, plain(tau))[tau.done].any()


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_lambda_returns_mix_all_n_step_returns(lam: float, gamma: float) -> None:
    """y_t = (1-lam) sum_n lam^(n-1) y_t^(n) + the rest of the weight on the longest, each n-step return on its own."""
    tau = rollout(TinyMdp(horizon=4, ends=0.4), None, 40, dtype=torch.float64)
    reward, after = random(4, 40, 2, dtype=torch.float64), random(4, 40, 2, seed=1, dtype=torch.float64)
    found = lambda_returns(reward, after, tau.done, gamma, lam)
    for b in range(40):
        length = int(tau.alive[:, b].sum())
        for t in range(length):
            targets = []
            for n in range(1, length - t + 1):
                y = sum(gamma**k * reward[t + k, b] for k in range(n)) + gamma**n * after[t + n - 1, b]
                targets.append(y)
            weights = [(1 - lam) * lam**k for k in range(len(targets) - 1)] + [lam ** (len(targets) - 1)]
            truth: Any = sum(w * y for w, y in zip(weights, targets, strict=True))
            assert torch.allclose(found[t, b], truth, atol=1e-12)


def test_mean_over_live_counts_live_units_of_each_seed() -> None:
    """A plain mean over what was alive, seed by seed; dead steps weigh nothing."""
    tau = rollout(TinyMdp(horizon=4, ends=0.5), None, 10, [0, 1])
    x = random(4, 20, 2)
    found = mean_over_live(x, tau.alive, 2)
    for s in range(2):
        mine = slice(10 * s, 10 * s + 10)
        assert torch.allclose(found[s], x[:, mine][tau.alive[:, mine]].mean(), atol=1e-6)
    assert not tau.alive.all()


def test_clipped_error_lets_a_prediction_move_so_far() -> None:
    """With `clip` the gradient vanishes once a prediction moved more than it towards the target, and only then."""
    for moved, target, moves in ((0.05, 1.0, True), (0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True)):
        prediction = torch.tensor(moved, requires_grad=True)
        error(prediction, torch.tensor(target), torch.tensor(0.0), 0.1).backward()
        assert prediction.grad is not None and bool(prediction.grad != 0) == moves
    assert float(error(torch.tensor(2.0), torch.tensor(0.5), torch.tensor(9.0), None)) == 2.25


# Running normalisation and minibatches.


def test_running_statistics_are_those_of_everything_seen() -> None:
    """Mean and deviation over all live rows so far, per seed and copy; dead rows are left out."""
    norm = Running(2, 3, 4)
    x = [random(2, 3, 4, r, seed=r) * 5 + 2 for r in (7, 1, 20)]
    assert torch.equal(norm(x[0]), x[0].clamp(-10, 10))  # nothing seen, nothing changed
    alive = [(random(2, 1, 1, v.shape[-1], seed=9 + k) > -0.5).float() for k, v in enumerate(x)]
    for batch, weight in zip(x, alive, strict=True):
        norm.track(torch.where(weight > 0, batch, 1e6), weight.expand(2, 3, 1, -1))
    for s in range(2):
        seen = torch.cat([batch[s][..., weight[s, 0, 0] > 0] for batch, weight in zip(x, alive, strict=True)], -1)
        assert torch.allclose(norm.mean[s, ..., 0], seen.mean(-1), atol=1e-5)
        assert torch.allclose(norm.std[s, ..., 0], seen.std(-1, correction=0), rtol=1e-4)
        expected = (x[0][s] - seen.mean(-1, keepdim=True)) / seen.std(-1, correction=0, keepdim=True)
        assert torch.allclose(norm(x[0])[s], expected, atol=1e-4)


@pytest.mark.parametrize("central", [False, True], ids=["own view", "central"])
def test_normalised_values_speak_in_units_of_return(central: bool) -> None:
    """V = mean + std f; `track` hands the network (G - mean) / std, so that f = its target means V = G."""
    game = TinyMdp()
    value = Value(game, (0, 1), central, Fit(normalize_returns=True, normalize_obs=True))
    tau = rollout(game, None, 16, [0, 1])
    returns = tau.reward.flip(0).cumsum(0).flip(0)[..., None].expand(-1, -1, 2) * 30 + 100
    with torch.no_grad():
        before = value(tau)
        target = value.track(tau, returns)
        assert torch.equal(before, Value(game, (0, 1), central, Fit())(tau))
        raw, worth = value.raw(tau), value(tau)
    for s in range(2):
        mine = slice(16 * s, 16 * s + 16)
        live = tau.alive[:, mine]
        for i in range(2):
            seen = returns[:, mine, i][live]
            mean, std = seen.mean(), seen.std(correction=0)
            assert torch.allclose(target[:, mine, i][live], (seen - mean) / std, atol=1e-3)
            assert torch.allclose(worth[:, mine, i], mean + std * raw[:, mine, i], atol=1e-3)


@pytest.mark.parametrize("pieces", [1, 3])
def test_minibatches_share_out_every_row_once(pieces: int) -> None:
    """Each pass takes every (step, episode) of every seed exactly once; a seed's shuffle ignores its neighbours."""
    tau = rollout(TinyMdp(), None, 5, [3, 8])
    batches = list(schedule([3, 8], tau, 2, 2, pieces, "test"))
    if pieces == 1:
        assert batches == [None, None] and subset(tau, None) is tau
        return
    found = [b for b in batches if b is not None]
    assert len(found) == 2 * 3
    for k in range(2):
        rows = torch.cat(found[3 * k : 3 * k + 3], 1)
        assert torch.equal(rows.sort(1).values, torch.arange(15).expand(2, -1))
    assert not torch.equal(torch.cat(found[:3], 1), torch.cat(found[3:], 1))
    alone = [b for b in schedule([8], rollout(TinyMdp(), None, 5, 8), 2, 2, 3, "test") if b is not None]
    assert all(torch.equal(one[0], both[1]) for one, both in zip(alone, found, strict=True))
    for index in found:
        part = subset(tau, index)
        M = index.shape[1]
        for s, m in ((s, m) for s in range(2) for m in range(M)):
            t, e = divmod(int(index[s, m]), 5)
            for name in ("obs", "action", "probs", "alive"):
                assert torch.equal(getattr(part, name)[0, s * M + m], getattr(tau, name)[t, 5 * s + e])
            assert int(part.state.place[0, s * M + m]) == int(tau.state.place[t, 5 * s + e])


def test_widths_chain() -> None:
    """Layers fit their neighbours."""
    sizes = (3, 4, 5, 6)
    net = Population("test", [0], 2, sizes)
    assert [tuple(w.shape) for w in net.weights] == [(2, out, into) for into, out in pairwise(sizes)]


def test_an_order_is_the_schedule_in_one_piece_and_keeps_ties_in_place() -> None:
    """Rows whose numbers tie (2000 of 2^24 often do) come in the same order whatever seeds train beside them."""
    for update in range(3):
        together = orders((4, 7), 2000, update, 3, 4, "test")
        for k in range(3):
            assert torch.equal(together[k], shuffled((4, 7), 2000, update * 3 + k, "test"))
        assert torch.equal(together[:, 1:], orders((7,), 2000, update, 3, 4, "test"))
        assert torch.equal(together.sort(-1).values, torch.arange(2000).expand(3, 2, 2000))
    assert not torch.equal(together[0], together[1])
