#!/usr/bin/env bash
# The rows of bench/RESULTS.md that need one large GPU, sized for ten minutes a part on an H200:
#   bash bench/gpu.sh PATH_TO_NANOGPT [tests speed laptop quality decode]        without names, all of them
# nanoGPT needs its data/shakespeare_char and data/shakespeare prepared. PYTHON=... chooses another Python.
set -euo pipefail
[ -d "${1:-}" ] || { echo "usage: bash bench/gpu.sh PATH_TO_NANOGPT [PART ...]" >&2; exit 2; }
PEER=$(realpath "$1")
cd "$(dirname "$0")/.."
shift
PYTHON="${PYTHON:-python}"

prepare() { # a dataset's name, then the command that prepares it, unless it is there
    [ -e "data/$1/meta.json" ] || "$PYTHON" "${@:2}" --out="data/$1"
}

for part in ${*:-tests speed laptop quality decode}; do
    case $part in
    tests) "$PYTHON" -m pytest -q -m gpu tests ;;
    speed) # tokens per second against nanoGPT's code, MFU, and the share of a step in which the GPU waits
        prepare shakespeare_gpt2 prepare/text.py --input "$PEER/data/shakespeare/input.txt" --tokenizer gpt2
        "$PYTHON" bench/train_speed.py gpt2_124m_64 --peer="$PEER" --peer_dataset=shakespeare --waits=true \
            --dataset=data/shakespeare_gpt2
        ;;
    laptop) # tiny Shakespeare to the loss that nanoGPT's setting has on a GPU, whole processes
        prepare shakespeare_char prepare/shakespeare_char.py --input "$PEER/data/shakespeare_char/input.txt"
        "$PYTHON" bench/time_to_loss.py shakespeare_char_laptop --target=1.4697 --peer="$PEER" --seeds=2
        ;;
    quality) # steps to the loss of GPT-2's network with AdamW at three rates, on the Python source of this machine
        source=$("$PYTHON" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')
        prepare python_source prepare/text.py --input "$source" --tokenizer bpe:4096
        shape="--n_layer=8 --n_head=8 --n_embd=512 --block_size=512 --batch_size=128 --max_steps=450 --log_interval=50"
        gpt2="--position=learned --norm=layernorm --norm_weight=true --activation=gelu_tanh --qk_norm=false --bias=true"
        gpt2="$gpt2 --tie_weights=true --zero_init=false --optimizer=adamw --lr_schedule=cosine --min_lr_fraction=0.1"
        rates="--learning_rate=0.002 --warmup_steps=50 --weight_decay=0.1 --muon_learning_rate=0.02"
        modern="modern, Muon: position=rope,norm=rmsnorm,norm_weight=false,activation=swiglu,qk_norm=true,bias=false"
        modern="$modern,tie_weights=false,zero_init=true,n_head=4"
        modern="$modern,optimizer=muon,lr_schedule=wsd,min_lr_fraction=0.05,learning_rate=0.008"
        "$PYTHON" bench/ablate.py gpt2_124m --dataset=data/python_source --extra="$shape $gpt2 $rates --eval_tokens=500000" \
            --without learning_rate=0.001 learning_rate=0.004 "$modern"
        ;;
    decode) "$PYTHON" bench/decode_speed.py --only gpu ;;
    *)
        echo "gpu.sh: there is no part $part: tests, speed, laptop, quality, decode" >&2
        exit 2
        ;;
    esac
done
