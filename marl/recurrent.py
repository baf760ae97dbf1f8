"""What an agent saw before may tell what it should do now: a memory that is a function of its observations alone.

Because m_t depends on o_0 .. o_t and on nothing else, a recording needs no field for it: whoever replays an episode
lets the policy look again. And a game whose state also holds what its agents remember (`with_memory`) is a game in
which they need no memory, so that everything that enumerates states stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.noise import uniform
from marl.networks import Population, fused_for, multilayer

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
CACHE_UNITS = 1 << 22  # gates, over all steps, of the networks that are unrolled together: what the caches hold


class Gru(nn.Module):
    """S * C gated recurrent networks of one shape (Cho et al. 2014, as torch.nn.GRU writes them):

    r = sigmoid(W_r x + U_r h + b_r),  z = sigmoid(W_z x + U_z h + b_z),
    n = tanh(W_n x + b_n + r (U_n h + b'_n)),  h' = (1 - z) n + z h,  h = 0 before the first step,

    where x is what a multilayer perceptron makes of the input; its last layer is W, b. All that does not depend on
    the past is thus one batched matmul over all steps; a step of the recurrence is one more. First weights of U and
    its biases are uniform in +-1/sqrt(H).

    Args: sizes (inputs, hidden units ..., H), all but the last those of the perceptron.
    """

    def __init__(
        self, name: str, seeds: Sequence[int], copies: int, sizes: Sequence[int], activation: str = "relu"
    ) -> None:
        super().__init__()
        *layers, self.units = sizes
        H = self.units
        self.see = Population(f"{name}/see", seeds, copies, (*layers, 3 * H), activation)
        u = uniform(f"init/{name}/recall", list(seeds), 0, (copies, 3 * H, H + 1))
        table = ((2 * u - 1) / H**0.5).flatten(0, 1)
        self.recall = nn.Parameter(table[:, :, :-1].contiguous())
        self.bias = nn.Parameter(table[:, :, -1:].contiguous())

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """Whole episodes: [S, C, inputs, steps * M], step by step -> what is remembered after each, [S, C, H, same]."""
        activation = self.see.activation
        layers = (*self.see.weights, *self.see.biases)
        if fused_for(x) is not None:
            from marl.fused.gru import Remembered  # on use: compiled code takes its time to load

            found: Tensor = Remembered.apply(activation, x.shape[3] // steps, x, self.recall, self.bias, *layers)
            return found

        def some(x: Tensor, recall: Tensor, bias: Tensor, *layers: Tensor) -> Tensor:
            """Some of the networks: [P, inputs, steps * M] -> [P, H, steps * M]."""
            gates = multilayer((x,), layers, activation).unflatten(2, (steps, -1)).permute(2, 0, 1, 3).contiguous()
            kept: Tensor = _Unroll.apply(gates, recall, bias, gates.new_zeros(*recall.shape[::2], gates.shape[3]))
            return kept.permute(1, 2, 0, 3).flatten(2)

        together = max(1, CACHE_UNITS // (3 * self.units * x.shape[3]))
        return _in_groups(some, together, x.flatten(0, 1), self.recall, self.bias, *layers).unflatten(0, x.shape[:2])

    def step(self, x: Tensor, before: Tensor) -> Tensor:
        """One step: inputs [S, C, inputs, M] and memory [S, C, H, M] -> memory [S, C, H, M]."""
        if not torch.is_grad_enabled() and fused_for(x) is not None:
            from marl.fused.gru import remembered  # on use: compiled code takes its time to load

            return remembered(x, before, (self.recall, self.bias, *self.see.layers), self.see.activation)
        gates = self.see(x).flatten(0, 1)[None]
        kept: Tensor = _Unroll.apply(gates, self.recall, self.bias, before.flatten(0, 1))
        return kept[0].unflatten(0, x.shape[:2])


def _in_groups(networks: Callable[..., Tensor], together: int, *tensors: Tensor) -> Tensor:
    """networks(*tensors), which never meet, `together` of them at a time; hidden units are recomputed going back.

    As `marl.networks.in_pieces`, but a whole episode has to stay together, and so it is the networks that are parted.
    """
    if len(tensors[0]) <= together:
        return networks(*tensors)
    if not torch.is_grad_enabled():
        return _group_by_group(networks, together, tensors)
    out: Tensor = _InGroups.apply(networks, together, *tensors)
    return out


def _group_by_group(networks: Callable[..., Tensor], together: int, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([networks(*part) for part in zip(*(x.split(together) for x in tensors), strict=True)])


class _InGroups(torch.autograd.Function):
    """See `_in_groups`."""

    @staticmethod
    def forward(ctx: Any, networks: Callable[..., Tensor], together: int, *tensors: Tensor) -> Tensor:
        """Keep the inputs only."""
        ctx.networks, ctx.together = networks, together
        ctx.save_for_backward(*tensors)
        return _group_by_group(networks, together, tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The chain rule, group by group."""
        wants = ctx.needs_input_grad[2:]
        found: list[list[Tensor]] = [[] for _ in wants]
        for *part, g in zip(*(x.split(ctx.together) for x in (*ctx.saved_tensors, grad)), strict=True):
            with torch.enable_grad():
                part = [x.detach().requires_grad_(w) for x, w in zip(part, wants, strict=True)]
                out = ctx.networks(*part)
            asked = [k for k, w in enumerate(wants) if w]
            for k, new in zip(asked, torch.autograd.grad(out, [part[k] for k in asked], g), strict=True):
                found[k].append(new)
        return None, None, *(torch.cat(f) if f else None for f in found)


class _Unroll(torch.autograd.Function):
    """The recurrence and its gradient, one matmul a step and two on the way back.

    gates [T,P,3H,M] (what x adds to r, z, n), U [P,3H,H], b [P,3H,1], h [P,H,M] -> [T,P,H,M].
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, recall: Tensor, bias: Tensor, before: Tensor) -> Tensor:
        """Keep the gates and what they let through."""
        T, P, H3, M = gates.shape
        H = H3 // 3
        out = gates.new_empty(T, P, H, M)
        opened, fresh, heard = gates.new_empty(T, P, 2 * H, M), torch.empty_like(out), torch.empty_like(out)
        h = before
        for t in range(T):
            said = torch.baddbmm(bias, recall, h)
            heard[t] = said[:, 2 * H :]
            torch.add(gates[t, :, : 2 * H], said[:, : 2 * H], out=opened[t]).sigmoid_()
            torch.addcmul(gates[t, :, 2 * H :], opened[t, :, :H], heard[t], out=fresh[t]).tanh_()
            h = torch.lerp(fresh[t], h, opened[t, :, H:], out=out[t])
        ctx.save_for_backward(recall, before, out, opened, fresh, heard)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Through time, last step first."""
        recall, before, out, opened, fresh, heard = ctx.saved_tensors
        H = out.shape[2]
        to_gates = grad.new_empty(*opened.shape[:2], 3 * H, grad.shape[3])
        to_recall, to_bias = torch.zeros_like(recall), recall.new_zeros(len(recall), 3 * H, 1)
        back, carry = recall.transpose(1, 2), torch.zeros_like(before)
        for t in reversed(range(len(grad))):
            past, r, z = out[t - 1] if t else before, opened[t, :, :H], opened[t, :, H:]
            dh = grad[t] + carry
            kept = dh * z
            dn = tanh_backward(dh - kept, fresh[t])
            dz = sigmoid_backward(dh.mul_(past - fresh[t]), z)
            dr = sigmoid_backward(dn * heard[t], r)
            inside = torch.cat((dr, dz, dn * r), 1)  # of U h + b
            torch.cat((dr, dz, dn), 1, out=to_gates[t])
            carry = torch.baddbmm(kept, back, inside)
            to_recall.baddbmm_(inside, past.transpose(1, 2))
            to_bias += inside.sum(2, keepdim=True)
        return to_gates, to_recall, to_bias, carry
