"""What an unknown setting was meant to be: a typo, another program's name, or another command's."""

from dataclasses import fields

from lathe.settings import Settings

# Others' names -> ours, of whichever command has them.
ALIASES = {
    # nanoGPT
    "max_iters": ["max_steps"],
    "gradient_accumulation_steps": ["batch_size", "micro_batch_size"],
    "eval_iters": ["eval_tokens"],
    "eval_only": ["evaluate.py"],
    "always_save_checkpoint": ["checkpoint_interval", "keep_checkpoints"],
    "decay_lr": ["lr_schedule"],
    "warmup_iters": ["warmup_steps"],
    "lr_decay_iters": ["decay_fraction"],
    "min_lr": ["min_lr_fraction"],
    "backend": ["device", "parallel"],
    "start": ["prompt"],
    "init_from": ["out_dir", "model"],  # where it is no setting of ours: in sample.py
    # Hugging Face, llm.c, PyTorch and papers
    "lr": ["learning_rate"],
    "wd": ["weight_decay"],
    "bs": ["batch_size"],
    "num_train_epochs": ["epochs"],
    "num_epochs": ["epochs"],
    "max_epochs": ["epochs"],
    "num_iterations": ["max_steps"],
    "per_device_train_batch_size": ["micro_batch_size"],
    "max_grad_norm": ["grad_clip"],
    "gradient_checkpointing": ["activation_checkpointing"],
    "num_layers": ["n_layer"],
    "num_hidden_layers": ["n_layer"],
    "depth": ["n_layer"],
    "num_heads": ["n_head"],
    "num_attention_heads": ["n_head"],
    "num_key_value_heads": ["n_kv_head"],
    "hidden_size": ["n_embd"],
    "d_model": ["n_embd"],
    "intermediate_size": ["n_hidden"],
    "context_length": ["block_size"],
    "max_position_embeddings": ["block_size"],
    "max_seq_len": ["block_size"],
    "seq_len": ["block_size"],
    "tie_word_embeddings": ["tie_weights"],
    "eval_steps": ["eval_interval"],
    "logging_steps": ["log_interval"],
    "save_steps": ["checkpoint_interval"],
    "save_total_limit": ["keep_checkpoints"],
    "output_dir": ["out_dir"],
    "data": ["dataset"],
    "resume": ["init_from"],
    "resume_from_checkpoint": ["init_from"],
    "checkpoint": ["out_dir", "init_from"],
    "precision": ["dtype"],
    "lora_r": ["lora_rank"],
    "max_tokens": ["max_new_tokens"],
    "num_return_sequences": ["num_samples"],
    "num_workers": ["workers"],
}

# Settings that a command beside train.py has.
ELSEWHERE = {
    "prepare/text.py": ["input", "tokenizer", "val_fraction", "workers", "field"],
    "sample.py": [
        "prompt", "prompt_file", "prompts", "interactive", "max_new_tokens", "stream", "format",
        "temperature", "top_k", "top_p", "min_p", "logprobs", "stop", "stop_ids", "ignore_eot",
        "repetition_penalty", "frequency_penalty", "presence_penalty",
    ],
    "evaluate.py": ["tasks", "limit", "stride", "by_position"],
}  # fmt: skip


def did_you_mean(name: str, types: dict[str, type], dashes: str = "") -> str:
    """How a user goes on after an unknown name: "; did you mean --max_steps?".

    `types` has the settings of this command, `dashes` stand before them on a command line.
    """
    name = name.lower()
    positive = name.removeprefix("no_")
    if positive != name and types.get(positive) is bool:
        return f"; did you mean {dashes}{positive}=false?"

    commands = {setting.name: "train.py" for setting in fields(Settings)}
    for command, settings in ELSEWHERE.items():
        commands |= dict.fromkeys(settings, command)
    answers = []
    for known in nearest(name, [*types, *ALIASES, *commands], first=types):
        answer = meaning(known, types, commands, dashes)
        if answer and answer not in answers:
            answers.append(answer)
    if not answers:
        return "; --help lists all settings"
    return f"; did you mean {' or '.join(answers[:3])}?"


def nearest(name: str, known: list[str], first: dict[str, type]) -> list[str]:
    """The known names most like this one; of equally near ones those in `first`, if any are."""
    import difflib  # for mistakes alone

    nearness = {}
    for word in known:
        nearness[word] = difflib.SequenceMatcher(None, name, word, autojunk=False).ratio()
    best = max(nearness.values())
    if best < 0.6:
        return []
    near = [word for word in nearness if nearness[word] == best]
    return [word for word in near if word in first] or near


def meaning(known: str, types: dict[str, type], commands: dict[str, str], dashes: str) -> str:
    """What a known name stands for: settings of this command, a command, or another's setting."""
    if known in types:
        return dashes + known
    names = ALIASES.get(known, [known])
    here = [dashes + name for name in names if name in types]
    if here:
        return " and ".join(here)
    for name in names:
        if name in commands:
            return f"{commands[name]} --{name}"
        if name.endswith(".py"):
            return name
    return ""
