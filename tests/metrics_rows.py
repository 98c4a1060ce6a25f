"""Rows as a run reports them, for the tests of metrics.jsonl, of lines and bar, and of the mirrors."""


def train_row(step: int, **changed) -> dict:
    row = {
        "step": step,
        "tokens": step * 1000,
        "loss": 2.5,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 10000.0,
        "elapsed": 1.0 * step,
    }
    return row | changed


def eval_row(step: int, **changed) -> dict:
    row = {"step": step, "val_loss": 2.25, "val_bits_per_byte": 1.5, "elapsed": 1.0 * step}
    return row | changed
