#!/usr/bin/env bash
# The GPU tests and the benchmarks on a GPU host, with what it has: PyTorch, Triton, NumPy, OpenCV,
# Pillow, safetensors, tqdm and pytest; the engine's tests need onnx, onnxscript and onnxruntime too
# (any, a CPU's will do). What else there is adds to what is measured: TensorRT, nvImageCodec.
# Everything lands in $OUT (default benchmarks/results/<the GPU's name>).
# A part that fails does not stop the next; the exit code says whether one did.
#
#     benchmarks/on_gpu.sh                           all parts: a quarter of an hour
#     benchmarks/on_gpu.sh kernel-tests pipeline     some parts: kernel-tests, engine-tests, train-tests, pipeline, kernels
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

tests() { # name, seconds, folder; folders apart: what one needs to be collected may not be there
    part "$1" "$2" python3 -m pytest "$3" -m gpu -q \
        --continue-on-collection-errors --junitxml="$out/$1.xml"
}

everything() {
    describe
    local name
    for name in "$@"; do
        case $name in
        kernel-tests) tests "$name" 150 tests/kernels ;;
        # the engine's PyTorch compiles the generator for every batch size: minutes
        engine-tests) tests "$name" 420 tests/engine ;;
        train-tests) tests "$name" 90 tests/train/test_train_on_gpu.py ;;
        pipeline) part "$name" 220 python3 -m benchmarks.pipeline --out "$out" ;;
        kernels) part "$name" 150 python3 -m benchmarks.kernels --out "$out" ;;
        *)
            echo "error: there is no part $name: kernel-tests, engine-tests, train-tests, pipeline, kernels" >&2
            failed=2
            ;;
        esac
    done
    return "$failed"
}

if (($# == 0)); then
    set -- kernel-tests engine-tests train-tests pipeline kernels
fi
everything "$@" 2>&1 | tee -a "$out/log.txt"
exit "${PIPESTATUS[0]}"
