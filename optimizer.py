"""Which parameter is updated how: Muon for the matrices inside the blocks, AdamW for the rest, and the schedules.

Every parameter is in exactly one group. Weight decay falls on matrices only. Learning rates are functions of the step,
set before each update, so nothing of them needs saving.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

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


def is_sharded(p: Tensor) -> bool:
    """Whether p is cut up over ranks: a DTensor, whose module takes too long to import just to ask."""
    return hasattr(p, "to_local")


class Optimizer:
    """Parameters in groups, each a dict of `params` and how they are updated, and a dict of tensors for each parameter.

    The part of torch.optim.Optimizer that training needs (a GradScaler takes it too). That class imports torch's
    compiler at its first use, a whole second, which in a run of seconds is much (bench/LOG.md).
    """

    def __init__(self, groups: Iterable[dict], **defaults):
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self, skip: Tensor | None = None):
        """One update from the gradients; where `skip`, a boolean without dimensions, is true, all stays as it is. A GPU
        sees to that by itself, so that nobody has to wait for its answer."""
        if skip is not None and not skip.is_cuda:
            if skip:
                return
            skip = None
        for group in self.param_groups:
            self.update(group, skip)

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), in torch's fused kernel.

    Raises nothing of its own; moments are of the parameters' dtype, and sharded as they are.
    """

    def __init__(
        self, groups: Iterable[dict], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):  # fmt: skip
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, group: dict, skip: Tensor | None):
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if not params:
            return
        states = [self.state[p] for p in params]
        steps = [state["step"] for state in states]
        columns = params, [p.grad for p in params], *([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq"))
        columns = [[t.to_local() if is_sharded(t) else t for t in column] for column in columns]
        torch._foreach_add_(steps, 1.0)
        beta1, beta2 = group["betas"]
        found_inf = None if skip is None else skip.float()
        torch._fused_adamw_(
            *columns, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False, found_inf=found_inf,
        )  # fmt: skip
        if skip is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))  # one tensor for all would be read by the host


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


def build_optimizers(
    named_params: Iterable[tuple[str, Tensor]], optimizer: str, learning_rate: float, muon_learning_rate: float,
    weight_decay: float, betas: tuple[float, float], muon_momentum: float, fused_rows: dict[str, tuple[int, ...]],
) -> list[Optimizer]:  # fmt: skip
    """[Muon, AdamW] or, with optimizer="adamw", [AdamW]. Groups carry `names` and `base_lr`.

    fused_rows: see GPT.fused_rows. Raises ValueError for an unknown optimizer.
    """
    if optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer is {optimizer!r}: choose muon or adamw")
    named = [(name, p) for name, p in named_params if p.requires_grad]
    hidden = [(n, p) for n, p in named if optimizer == "muon" and p.dim() == 2 and ".h." in n]
    rest = [(n, p) for n, p in named if not any(p is q for _, q in hidden)]
    groups = [
        dict(params=[p for _, p in part], names=[n for n, _ in part], weight_decay=decay, base_lr=learning_rate)
        for part, decay in (
            ([(n, p) for n, p in rest if p.dim() >= 2], weight_decay),
            ([(n, p) for n, p in rest if p.dim() < 2], 0.0),
        )
        if part
    ]
    built: list[Optimizer] = []
    if hidden:
        rows = {i: fused_rows[n] for i, (n, _) in enumerate(hidden) if n in fused_rows}
        muon = Muon([p for _, p in hidden], muon_learning_rate, muon_momentum, weight_decay, rows)
        muon.param_groups[0].update(names=[n for n, _ in hidden], base_lr=muon_learning_rate)
        built.append(muon)
    if groups:
        # The small eps lets rows that are rarely seen (rare tokens) move as far as the others.
        eps = 1e-8 if optimizer == "adamw" else 1e-10
        built.append(AdamW(groups, learning_rate, betas, eps))
    grouped = [p for o in built for g in o.param_groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(named), "a parameter is in no group, or in two"
    return built


def set_rates(optimizers: list[Optimizer], factor: float):
    """Give every group its rate for this step: base_lr * factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def lr_factor(
    step: int, max_steps: int, schedule: str, warmup_steps: int, decay_fraction: float, min_fraction: float
) -> float:
    """The share of the full learning rate at update `step` (0 is the first of max_steps).

    Linear warmup over warmup_steps, but at most a fifth of the run. Then "wsd": constant, and a linear way down to
    min_fraction over the last decay_fraction of the run (arXiv 2405.18392); "cosine": half a cosine down to
    min_fraction; "constant". Raises ValueError for another schedule.
    """
    warmup = min(warmup_steps, max_steps // 5)
    rise = min(1.0, (step + 1) / (warmup + 1))
    if schedule == "constant":
        return rise
    if schedule == "wsd":
        left = (max_steps - step) / max(1.0, decay_fraction * max_steps)
        return rise * (min_fraction + (1 - min_fraction) * min(1.0, left))
    if schedule == "cosine":
        done = max(0, step - warmup) / max(1, max_steps - warmup)
        return rise * (min_fraction + (1 - min_fraction) * 0.5 * (1 + math.cos(math.pi * done)))
    raise ValueError(f"lr_schedule is {schedule!r}: choose wsd, cosine or constant")


def optimizer_state(optimizers: list[Optimizer]) -> dict[str, dict[str, Tensor]]:
    """{parameter name: its tensors}: what must survive a restart, whatever the grouping."""
    return {
        name: optimizer.state[p]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
        if p in optimizer.state
    }


def load_optimizer_state(optimizers: list[Optimizer], state: dict[str, dict[str, Tensor]]):
    """Inverse of optimizer_state. Tensors go to their parameter's device.

    The empty state of a run before its first update is accepted. Raises ValueError, naming a parameter, if the state is
    of another model or another optimizer.
    """
    names = {name for optimizer in optimizers for group in optimizer.param_groups for name in group["names"]}
    if unknown := sorted(set(state) - names):
        raise ValueError(f"the checkpoint holds optimizer state for {unknown[0]}, which this model does not have")
    if not state:
        return
    for optimizer in optimizers:
        expected = "momentum" if isinstance(optimizer, Muon) else "exp_avg"
        for group in optimizer.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                held = state.get(name, {})
                if expected not in held or held[expected].shape != p.shape:
                    raise ValueError(
                        f"the checkpoint holds no {type(optimizer).__name__} state for {name}: it was written with "
                        "another optimizer; give that --optimizer, or take its weights alone with --init_from=FOLDER"
                    )
                optimizer.state[p] = {key: like_parameter(value, p) for key, value in held.items()}


def like_parameter(value: Tensor, p: Tensor) -> Tensor:
    """A copy of a whole tensor of optimizer state on its parameter's device, and cut up as the parameter is."""
    value = value.to(p.device, copy=True)
    if is_sharded(p) and value.shape == p.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
    return value
