#!/usr/bin/env bash
# The GPU tests and the benchmarks on a GPU host, with what it has: PyTorch, Triton, NumPy, OpenCV,
# Pillow, safetensors, tqdm and pytest are enough, ONNX and its tools add to what is measured.
# Everything lands in $OUT (default benchmarks/results/<the GPU's name>).
# A part that fails does not stop the next; the exit code says whether one did.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

if ! name=$(python3 -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
    echo "error: python3 finds no PyTorch, or PyTorch no CUDA GPU" >&2
    exit 2
fi
name=$(tr '[:upper:] ' '[:lower:]-' <<<"$name" | tr -cd 'a-z0-9-')
out=${OUT:-benchmarks/results/$name}
mkdir -p "$out" || exit 2

describe() {
    date -u +%FT%TZ
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
    python3 - <<'PYTHON'
import importlib
import platform

print("python", platform.python_version())
for name in ("torch", "triton", "torchaudio", "torchvision", "numpy", "cv2", "onnxruntime"):
    try:
        print(name, importlib.import_module(name).__version__)
    except ImportError:
        print(name, "is not installed")
PYTHON
}

failed=0
part() { # name, seconds it may take, command
    local title=$1 seconds=$2 begin=$SECONDS code
    shift 2
    echo
    echo "== $title: $*"
    timeout --kill-after=10 "$seconds" "$@" </dev/null
    code=$?
    echo "== $title: exit code $code after $((SECONDS - begin)) s"
    if ((code != 0)); then
        failed=1
    fi
}

everything() {
    describe
    # together within nine minutes
    part tests 165 python3 -m pytest tests/kernels tests/engine -m gpu -q \
        --continue-on-collection-errors --junitxml="$out/tests.xml"
    part pipeline 220 python3 -m benchmarks.pipeline --out "$out"
    part kernels 150 python3 -m benchmarks.kernels --out "$out"
    return "$failed"
}

everything 2>&1 | tee "$out/log.txt"
exit "${PIPESTATUS[0]}"
