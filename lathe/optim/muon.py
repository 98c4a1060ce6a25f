"""Muon: momentum, orthogonalised, for the matrices inside the blocks."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from lathe.optim.optimizer import Optimizer, is_sharded

SHARED_FROM = 4  # ranks: with fewer, every rank orthogonalises all matrices, which is cheaper than passing them round

# (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, one triple an iteration.
POLAR_EXPRESS = (  # Amsel et al. 2025, arXiv 2505.16932: the best odd polynomials for five iterations
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)


def orthogonalize(x: Tensor, coefficients=POLAR_EXPRESS, safety: float = 0.02) -> Tensor:
    """The nearest orthogonal matrices, approximately: singular values of every matrix in x (K, m, n) go to about 1.

    m <= n is assumed (transpose before otherwise). bfloat16 is enough on a GPU; on a CPU float32 is as fast.
    """
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * (1 + safety) + 1e-7)
    for a, b, c in coefficients:
        gram = x @ x.mT  # (K, m, m)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024; Bernstein & Newhouse, arXiv 2409.20325), for 2-D parameters.

    A step moves W (m, n) by lr sqrt(max(1, m/n)) times an orthogonal matrix, so that one rate fits every width. Weight
    decay is cautious (arXiv 2510.12402): it acts only where it does not work against the update.
    `rows` maps a position in `params` to the rows of the matrices that the parameter holds one above the other
    (queries, keys and values): each is orthogonalised by itself. Same shapes are stacked, so a step is a few large
    kernels. `dtype` is that of the iterations. Raises ValueError for parameters that are not matrices.

    Among SHARED_FROM ranks or more, and with parameters sharded over ranks (FSDP2: cut along the rows), each
    rank orthogonalises some of the matrices, whole, and passes the results on: the same update, without the waste.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
        rows: dict[int, tuple[int, ...]] | None = None, coefficients=POLAR_EXPRESS, cautious: bool = True,
        dtype: torch.dtype | None = None,
    ):  # fmt: skip
        params = list(params)
        for p in params:
            if p.dim() != 2:
                raise ValueError(f"Muon updates matrices, not a parameter of shape {tuple(p.shape)}")
        super().__init__([dict(params=params)], lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.rows, self.coefficients, self.cautious, self.dtype = rows or {}, coefficients, cautious, dtype

    def update(self, group: dict, skip: Tensor | None):
        index = [i for i, p in enumerate(group["params"]) if p.grad is not None]
        params = [group["params"][i] for i in index]
        if not params:
            return
        lr, mu, decay = group["lr"], group["momentum"], group["weight_decay"]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        sharded = is_sharded(params[0])
        grads, momenta = [p.grad for p in params], [self.state[p]["momentum"] for p in params]
        if sharded:  # work on this rank's shards, which share their DTensors' memory
            grads, momenta = [t.to_local() for t in grads], [t.to_local() for t in momenta]
        if skip is not None:  # the average of momentum and itself is itself, whatever the gradients were
            grads = [torch.where(skip, m, g, out=g) for m, g in zip(momenta, grads, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1 - mu)
        nesterov = torch._foreach_lerp(grads, momenta, mu)
        world = dist.get_world_size() if dist.is_initialized() else 1
        if sharded or world >= SHARED_FROM:
            updates = self._updates_over_ranks(index, [p.shape for p in params], nesterov, sharded)
            params = [p.to_local() for p in params] if sharded else params
        else:
            updates = self._updates(index, nesterov)
        if skip is not None:
            torch._foreach_mul_(updates, (~skip).to(updates[0].dtype))
        if decay:
            if self.cautious:
                agree = torch._foreach_mul(updates, params)
                torch._foreach_sign_(agree)
                torch._foreach_clamp_min_(agree, 0.0)
                torch._foreach_mul_(agree, params)
                torch._foreach_add_(params, agree, alpha=-lr * decay)
            else:
                torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_add_(params, updates, alpha=-lr)

    def _updates(self, index: list[int], nesterov: list[Tensor]) -> list[Tensor]:
        """Whole matrices of momentum, at these positions in the group -> their updates."""
        # Cut fused parameters, lay every matrix flat (m <= n), stack what has the same shape.
        stacks = defaultdict(list)
        pieces = []  # for each parameter, where its updates will be: [(shape, place in the stack, tall)]
        for i, u in zip(index, nesterov, strict=True):
            places = []
            for piece in u.split(self.rows.get(i, (u.shape[0],))):
                tall = piece.shape[0] > piece.shape[1]
                stack = stacks[tuple(sorted(piece.shape))]
                places.append((tuple(sorted(piece.shape)), len(stack), tall))
                stack.append(piece.mT if tall else piece)
            pieces.append(places)
        dtype = self.dtype or (torch.bfloat16 if nesterov[0].is_cuda else torch.float32)
        done = {
            shape: orthogonalize(torch.stack(stack).to(dtype), self.coefficients).to(nesterov[0].dtype)
            for shape, stack in stacks.items()
        }
        updates = []
        for places in pieces:
            parts = []
            for shape, k, tall in places:
                part = done[shape][k]
                parts.append(part.mT * math.sqrt(shape[1] / shape[0]) if tall else part)  # m > n: times sqrt(m / n)
            updates.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return updates

    def _updates_over_ranks(
        self, index: list[int], shapes: list[torch.Size], nesterov: list[Tensor], sharded: bool
    ) -> list[Tensor]:
        """_updates with the work shared: the matrices of one shape are dealt out to the ranks in turn."""
        rank, world = dist.get_rank(), dist.get_world_size()
        done: list[Tensor] = [None] * len(nesterov)
        for shape in dict.fromkeys(shapes):  # in order, so that all ranks exchange the same ones next
            which = [k for k, other in enumerate(shapes) if other == shape]
            mine, rounds = which[rank::world], -(-len(which) // world)
            whole = [nesterov[k] for k in mine]
            cut = -(-shape[0] // world) if sharded else shape[0]  # rows of a shard; the last ones may have fewer
            if sharded:  # (rank that works, round, rows of a shard, n) -> (rank that holds the shard, round, ...)
                send = nesterov[0].new_zeros(world, rounds, cut, shape[1])
                for i, k in enumerate(which):
                    send[i % world, i // world, : nesterov[k].shape[0]] = nesterov[k]
                received = torch.empty_like(send)
                dist.all_to_all_single(received, send)
                whole = [received[:, i].reshape(-1, shape[1])[: shape[0]] for i in range(len(mine))]
            finished = self._updates([index[k] for k in mine], whole) if mine else []
            parts = nesterov[0].new_zeros(rounds, world * cut if sharded else cut, shape[1])
            for i, update in enumerate(finished):
                parts[i, : shape[0]] = update
            if sharded:  # back, each rank its own rows of every update
                send = parts.view(rounds, world, cut, shape[1]).transpose(0, 1).contiguous()
                received = torch.empty_like(send)
                dist.all_to_all_single(received, send)
            else:
                received = parts.new_empty(world * rounds, *shape)
                dist.all_gather_into_tensor(received, parts)
                received = received.view(world, rounds, *shape)
            for i, k in enumerate(which):
                done[k] = received[i % world, i // world, : nesterov[k].shape[0]]
        return done
