"""Which parameter is updated how: Muon for the matrices inside the blocks, AdamW for the rest.

Every parameter is in exactly one group. Weight decay falls on matrices only.
"""

from collections.abc import Iterable

from torch import Tensor

from lathe.optim.adamw import AdamW
from lathe.optim.muon import Muon
from lathe.optim.optimizer import Optimizer, is_sharded


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
