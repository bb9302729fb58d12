#!/usr/bin/env bash
# Runs the GPU tests and the benchmarks on a GPU host with the packages that it has. PyTorch, Triton,
# NumPy, OpenCV, Pillow, safetensors, tqdm and pytest are needed; the engine's tests also need onnx,
# onnxscript and onnxruntime (a CPU build will do). TensorRT and nvImageCodec are used if installed.
# All files go to $OUT (default: benchmarks/results/<name of the GPU>).
# Parts run one after another, whether they fail or not; the exit code tells whether one failed.
#
#     benchmarks/on_gpu.sh                           all parts, half an hour at most
#     benchmarks/on_gpu.sh kernel-tests pipeline     some of: kernel-tests, engine-tests, train-tests, pipeline,
#                                                    kernels, live
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

if ! name=$(python3 -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
    echo "error: python3 finds no PyTorch, or PyTorch finds no CUDA GPU" >&2
    exit 2
fi
name=$(tr '[:upper:] ' '[:lower:]-' <<<"$name" | tr -cd 'a-z0-9-')
out=${OUT:-benchmarks/results/$name}
mkdir -p "$out" || exit 2

describe() {
    date -u +%FT%TZ
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
    python3 - <<'PYTHON'
import platform
from importlib import metadata

print("python", platform.python_version())
for name in ("torch", "triton", "torchaudio", "torchvision", "numpy", "opencv-python-headless",
             "opencv-python", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
PYTHON
}

failed=0
part() { # name, seconds it may take, command
    local title=$1 seconds=$2 begin=$SECONDS code
    shift 2
    echo
    echo "== $title: $*"
    # SIGINT, on which pytest still writes its XML
    timeout --signal=INT --kill-after=30 "$seconds" "$@" </dev/null
    code=$?
    echo "== $title: exit code $code after $((SECONDS - begin)) s"
    if ((code != 0)); then
        failed=1
    fi
}

tests() { # name, seconds, path; one path per run, because a package needed to collect another may be missing
    part "$1" "$2" python3 -m pytest "$3" -m gpu -v \
        --continue-on-collection-errors --junitxml="$out/$1.xml"
}

everything() {
    describe
    local name
    for name in "$@"; do
        case $name in
        # the tests compile some 200 variants of the kernels
        kernel-tests) tests "$name" 300 tests/kernels ;;
        # the engine's PyTorch compiles the generator for every batch size, for minutes
        engine-tests) tests "$name" 560 tests/engine ;;
        train-tests) tests "$name" 120 tests/train/test_train_on_gpu.py ;;
        pipeline) part "$name" 240 python3 -m benchmarks.pipeline -o "$out/pipeline.json" ;;
        kernels) part "$name" 150 python3 -m benchmarks.kernels -o "$out/kernels.json" ;;
        live) part "$name" 270 python3 -m benchmarks.live -o "$out/live.json" ;;
        *)
            echo "error: unknown part $name; expected kernel-tests, engine-tests, train-tests, pipeline, kernels or live" >&2
            failed=2
            ;;
        esac
    done
    return "$failed"
}

if (($# == 0)); then
    set -- kernel-tests engine-tests train-tests pipeline kernels live
fi
everything "$@" 2>&1 | tee -a "$out/log.txt"
exit "${PIPESTATUS[0]}"
