"""Which parameter is updated how: Muon for the matrices inside the blocks, Adagrad for the table by
n-grams, AdamW for the rest."""

from collections.abc import Iterable

from torch import Tensor

from lathe.optim.adagrad import Adagrad
from lathe.optim.adamw import AdamW
from lathe.optim.muon import Muon
from lathe.optim.optimizer import Optimizer, TorchOptimizer


def build_optimizers(
    named_params: Iterable[tuple[str, Tensor]],
    optimizer: str,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    muon_momentum: float,
    fused_rows: dict[str, tuple[int, ...]],
    ngram_learning_rate: float = 0.0,
) -> list[Optimizer | TorchOptimizer]:
    """[Muon, AdamW] or, with optimizer="adamw", [AdamW]; and Adagrad, if there is a table by
    n-grams. Groups carry `names` and `base_lr`.

    Every parameter that is trained is in exactly one group. fused_rows: see GPT.fused_rows. Raises
    ValueError for an unknown optimizer. To have one of torch.optim, add its name to the choices in
    lathe/settings.py and, with groups as for adamw, a branch here that ends in
        return [TorchOptimizer(torch.optim.NAdam(groups, learning_rate, betas), "exp_avg")]
    NAdam's weight decay is a term of the gradient; decoupled_weight_decay=True makes it AdamW's.
    """
    trained = {name: p for name, p in named_params if p.requires_grad}
    tables = {name: p for name, p in trained.items() if is_ngram_table(name)}
    trained = {name: p for name, p in trained.items() if name not in tables}
    by_rows = []
    if tables:
        group = dict(params=tables.values(), names=list(tables), base_lr=ngram_learning_rate)
        by_rows = [Adagrad([group], ngram_learning_rate)]
    if optimizer == "adamw":
        groups = decay_groups(trained, learning_rate, weight_decay)
        return [AdamW(groups, learning_rate, betas, eps=1e-8), *by_rows]
    if optimizer == "muon":
        hidden = {name: p for name, p in trained.items() if p.dim() == 2 and ".h." in name}
        rest = {name: p for name, p in trained.items() if name not in hidden}
        built = []
        if hidden:
            rows = {i: fused_rows[name] for i, name in enumerate(hidden) if name in fused_rows}
            params = hidden.values()
            muon = Muon(params, muon_learning_rate, muon_momentum, weight_decay, rows)
            muon.param_groups[0].update(names=list(hidden), base_lr=muon_learning_rate)
            built.append(muon)
        if rest:
            groups = decay_groups(rest, learning_rate, weight_decay)
            # The small eps lets rows that are rarely seen (rare tokens) move as far as the others.
            built.append(AdamW(groups, learning_rate, betas, eps=1e-10))
        return [*built, *by_rows]
    raise ValueError(f"optimizer is {optimizer!r}: choose muon or adamw")


def is_ngram_table(name: str) -> bool:
    """Whether a parameter is the weight of lathe/ngrams.py."""
    return name.endswith("ngrams.weight")


def decay_groups(named: dict[str, Tensor], learning_rate: float, weight_decay: float) -> list[dict]:
    """Groups for AdamW and its like: weight decay falls on matrices only."""
    matrices = {name: p for name, p in named.items() if p.dim() >= 2}
    vectors = {name: p for name, p in named.items() if p.dim() < 2}  # biases and gains
    groups = []
    for part, decay in ((matrices, weight_decay), (vectors, 0.0)):
        if part:
            group = dict(params=list(part.values()), names=list(part), base_lr=learning_rate)
            groups.append({**group, "weight_decay": decay})
    return groups


def compile_updates(optimizers: list[Optimizer | TorchOptimizer]):
    """For GPUs: AdamW is one kernel as it is, Muon becomes few."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.compile()


# -----------------------------------------------------------------------------
# What must survive a restart


def named_parameters(optimizer: Optimizer | TorchOptimizer) -> dict[str, Tensor]:
    named = {}
    for group in optimizer.param_groups:
        named.update(zip(group["names"], group["params"], strict=True))
    return named


def optimizer_state(
    optimizers: list[Optimizer | TorchOptimizer],
) -> dict[str, dict[str, Tensor]]:
    """{parameter name: its tensors}, whatever the grouping."""
    state = {}
    for optimizer in optimizers:
        for name, p in named_parameters(optimizer).items():
            if p in optimizer.state:
                state[name] = optimizer.state[p]
    return state


def optimizer_kinds(optimizers: list[Optimizer | TorchOptimizer]) -> dict[str, str]:
    """{parameter name: name of the optimizer that updates it}: what its state means."""
    kinds = {}
    for optimizer in optimizers:
        for name in named_parameters(optimizer):
            kinds[name] = optimizer.name
    return kinds


def load_optimizer_state(
    optimizers: list[Optimizer | TorchOptimizer],
    state: dict[str, dict[str, Tensor]],
    kinds: dict[str, str] | None = None,
):
    """Inverse of optimizer_state. Tensors go to their parameter's device.

    kinds: optimizer_kinds of those that the state is of, as far as they are known. The empty state
    of a run before its first update is accepted. Raises ValueError, naming a parameter, if the
    state is of another model or another optimizer.
    """
    kinds = kinds or {}
    named_by_optimizer = [named_parameters(optimizer) for optimizer in optimizers]
    unknown = set(state).difference(*named_by_optimizer)
    if unknown:
        name = min(unknown)
        raise ValueError(
            f"the checkpoint holds optimizer state for {name}, which this model does not have"
        )
    if not state:
        return
    for optimizer, named in zip(optimizers, named_by_optimizer, strict=True):
        for name, p in named.items():
            kind = kinds.get(name, optimizer.name)
            if kind != optimizer.name or not fits(state.get(name, {}), optimizer, p):
                written = kind if kind != optimizer.name else "another optimizer"
                raise ValueError(
                    f"the checkpoint holds no {optimizer.name} state for {name}: it was written "
                    f"with {written}; give that --optimizer, or take its weights alone with "
                    "--init_from=FOLDER"
                )
        optimizer.load({p: state[name] for name, p in named.items() if name in state})


def fits(tensors: dict[str, Tensor], optimizer: Optimizer | TorchOptimizer, p: Tensor) -> bool:
    """Whether these tensors are the state of p in this optimizer, as far as they tell."""
    state_name = optimizer.state_name
    if not state_name:
        return True
    if isinstance(optimizer, Optimizer) and set(tensors) != optimizer.keeps:
        return False
    if state_name not in tensors:
        return False
    return tuple(tensors[state_name].shape) == optimizer.state_shape(p)
