"""What an unknown setting was meant to be: a typo, another program's name, or another command's."""

from dataclasses import fields

from lathe.settings import Settings

# Others' names -> ours, of whichever command has them. "a | b" is b where there is no a; after =
# stands the form of the value.
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
    "init_from": ["out_dir=RUN", "model=hf:NAME"],  # where it is none of ours: in sample.py
    "bigram_rows": ["ngram_rows"],  # of earlier versions
    # litgpt, nanochat
    "checkpoint_dir": ["init_from=RUN | out_dir=RUN"],
    "model_name": ["init_from=hf:NAME | model=hf:NAME | out_dir=RUN"],
    "device_type": ["device"],
    "device_batch_size": ["micro_batch_size"],
    "total_batch_size": ["batch_size"],
    "run": ["wandb_run_name | out_dir"],
    "model_tag": ["out_dir"],
    "val_split_fraction": ["val_fraction"],
    # Hugging Face, llm.c, PyTorch and papers
    "model": ["init_from=hf:NAME | out_dir=RUN"],  # where it is none of ours
    "model_name_or_path": ["init_from=hf:NAME | model=hf:NAME | out_dir=RUN"],
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
    "output_dir": ["to | out_dir"],
    "out": ["to | out_dir"],
    "data": ["dataset"],
    "resume": ["init_from"],
    "resume_from_checkpoint": ["init_from"],
    "checkpoint": ["init_from=RUN | out_dir=RUN"],
    "precision": ["dtype"],
    "lora_r": ["lora_rank"],
    "max_tokens": ["max_new_tokens"],
    "num_return_sequences": ["num_samples"],
    "num_workers": ["workers"],
}

# Names that stand for nothing to set here, and what decides it.
DECIDED = {
    "vocab_size": "the dataset's tokenizer decides it: prepare/text.py --tokenizer=bpe:N",
    "devices": "torchrun decides it: torchrun --standalone --nproc-per-node=N train.py ...",
    "num_gpus": "torchrun decides it: torchrun --standalone --nproc-per-node=N train.py ...",
    "nproc_per_node": "it goes before the command: torchrun --nproc-per-node=N train.py ...",
    "config": "a preset is written by its name alone: train.py PRESET.toml",
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


OWN_CUTOFF = 0.66  # how like a name of this command's one must be
OTHERS_CUTOFF = 0.85  # how like others' names, which are many: further away they fit anything


def did_you_mean(name: str, types: dict[str, type], dashes: str = "") -> str:
    """How a user goes on after an unknown name: "; did you mean --max_steps?".

    `types` has the settings of this command, `dashes` stand before them on a command line. Where
    no name is near, the names that there are, or where they stand.
    """
    name = name.lower()
    positive = name.removeprefix("no_")
    if positive != name and types.get(positive) is bool:
        return f"; did you mean {dashes}{positive}=false?"
    if name in DECIDED:
        return f"; {DECIDED[name]}"

    commands = {setting.name: "train.py" for setting in fields(Settings)}
    for command, settings in ELSEWHERE.items():
        commands |= dict.fromkeys(settings, command)
    answers = []
    for known in nearest(name, [*types, *ALIASES, *commands], first=types):
        answer = meaning(known, types, commands, dashes)
        if answer and answer not in answers:
            answers.append(answer)
    if answers:
        return f"; did you mean {' or '.join(answers[:3])}?"
    if len(types) <= MOST_LISTED:
        return f"; settings here are {', '.join(types)}"
    return "; --help lists all settings"


MOST_LISTED = 12  # settings of a command that one line names


def nearest(name: str, known: list[str], first: dict[str, type]) -> list[str]:
    """The known names most like this one; of equally near ones those in `first`, if any are."""
    import difflib  # for mistakes alone

    nearness = {}
    for word in known:
        ratio = difflib.SequenceMatcher(None, name, word, autojunk=False).ratio()
        if word in first and word.startswith(name) and len(name) >= 3:  # temp for temperature
            ratio = max(ratio, OWN_CUTOFF)
        if ratio >= (OWN_CUTOFF if word in first else OTHERS_CUTOFF):
            nearness[word] = ratio
    best = max(nearness.values(), default=0.0)
    near = [word for word in nearness if nearness[word] == best]
    return [word for word in near if word in first] or near


def meaning(known: str, types: dict[str, type], commands: dict[str, str], dashes: str) -> str:
    """What a known name stands for: settings of this command, a command, or another's setting."""
    if known in types:
        return dashes + known
    meant = [either.split(" | ") for either in ALIASES.get(known, [known])]
    here = []
    for names in meant:
        first = next((name for name in names if name.partition("=")[0] in types), "")
        if first:
            here.append(dashes + first)
    if here:
        return (" or " if "=" in "".join(here) else " and ").join(here)
    for name in meant[0]:
        if name.partition("=")[0] in commands:
            return f"{commands[name.partition('=')[0]]} --{name}"
        if name.endswith(".py"):
            return name
    return ""
