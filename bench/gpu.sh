#!/usr/bin/env bash
# What one large GPU shows, on a machine that need have nothing but Python and torch, from the
# folder that bench/gpu_folder.py makes:
#   bash bench/gpu.sh FOLDER [PART ...] [--minutes=9.5] [--rehearse=true]        see bench/gpu.py
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
