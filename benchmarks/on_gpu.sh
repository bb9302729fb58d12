#!/usr/bin/env bash
# Runs the GPU tests and the benchmarks on a GPU host with the packages that it has. PyTorch, Triton,
# NumPy, OpenCV, Pillow, safetensors, tqdm and pytest are needed; the engine's tests also need onnx,
# onnxscript and onnxruntime (a CPU build will do). TensorRT, nvImageCodec and ncu are used if installed.
# All files go to $OUT (default: benchmarks/results/<name of the GPU>).
# Parts run one after another, whether they fail or not; the exit code tells whether one failed. Each
# takes less than ten minutes. One that is stopped, by its limit or by Ctrl-C, leaves what it has
# measured or tested so far.
#
#     benchmarks/on_gpu.sh                           all parts, the most instructive ones first
#     benchmarks/on_gpu.sh kernel-tests pipeline     some of them, in this order
#     benchmarks/on_gpu.sh --list                    the parts, and how long each takes
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

# name, seconds it is expected to take on an H200 with 16 cores, seconds after which it is stopped
parts='
generator        200  520
generator-profile 60  200
kernel-tests     200  450
capture-tests     30  120
kernels-main     120  240
kernels-profile   60  150
engine-torch     300  560
pipeline-quick   120  240
pipeline         420  560
engine-tests     400  560
train-tests       60  150
kernels          400  520
live             270  520
'

list() { # names; prints what each takes, and the sum
    local name expected limit all=0 most=0
    for name in "$@"; do
        read -r _ expected limit <<<"$(grep "^$name " <<<"$parts")"
        printf '%-18s about %3d s, at most %3d s\n' "$name" "$expected" "$limit"
        all=$((all + expected)) most=$((most + limit))
    done
    printf '%-18s about %3d min, at most %3d min\n' "in all" $(((all + 59) / 60)) $(((most + 59) / 60))
}

if (($# == 0)) || [[ $1 == --list ]]; then
    mapfile -t names < <(awk 'NF { print $1 }' <<<"$parts")
else
    names=("$@")
fi
for name in "${names[@]}"; do
    if ! grep -q "^$name " <<<"$parts"; then
        echo "error: unknown part $name; expected some of: $(awk 'NF { print $1 }' <<<"$parts" | xargs)" >&2
        exit 2
    fi
done
if [[ ${1:-} == --list ]]; then
    list "${names[@]}"
    exit 0
fi
if ! gpu=$(python3 -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
    echo "error: python3 finds no PyTorch, or PyTorch finds no CUDA GPU" >&2
    exit 2
fi
gpu=$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu" | tr -cd 'a-z0-9-')
out=${OUT:-benchmarks/results/$gpu}
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
run() { # name, command
    local title=$1 begin=$SECONDS code expected limit
    shift
    read -r _ expected limit <<<"$(grep "^$title " <<<"$parts")"
    echo
    echo "== $title, about $expected s, at most $limit s: $*"
    # SIGINT, on which pytest still writes its XML; a benchmark saves its results after each job
    timeout --signal=INT --kill-after=30 "$limit" "$@" </dev/null
    code=$?
    echo "== $title: exit code $code after $((SECONDS - begin)) s"
    if ((code != 0)); then
        failed=1
    fi
}

tests() { # name, path, options; one path per run, because a package needed to collect another may be missing
    local name=$1 path=$2
    shift 2
    run "$name" python3 -m pytest "$path" -m gpu -v --durations=15 \
        --continue-on-collection-errors --junitxml="$out/$name.xml" "$@"
}

profile() { # name, regular expression of its kernels, what to launch
    if ! command -v ncu >/dev/null; then
        echo
        echo "== $1: ncu is not installed"
        return
    fi
    local name=$1 kernels=$2
    shift 2
    run "$name" ncu --kernel-name "regex:$kernels" --section SpeedOfLight --section Occupancy \
        --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis --section WarpStateStats \
        --section LaunchStats --log-file "$out/$name.txt" \
        python3 -m benchmarks.launches "$@"
}

everything() {
    list "$@"
    describe
    local name
    for name in "$@"; do
        case $name in
        generator) run "$name" python3 -m benchmarks.generator -o "$out/generator.json" ;;
        generator-profile) profile "$name" '_narrow|_depthwise|_product|_dense' \
            up5.0 up4.0 down1.0 up5.1 inc up3.0 fuse.0 ;;
        kernel-tests) tests "$name" tests/kernels ;;
        # what another thread that waits for the GPU does to a capture, and freed memory
        capture-tests) tests "$name" tests/engine/test_on_gpu.py -s \
            -k 'capture or held_by_the_stream or waited_for_during' ;;
        kernels-main) run "$name" python3 -m benchmarks.kernels --parts main -o "$out/kernels-main.json" ;;
        kernels-profile) profile "$name" 'composite|face_input' composite face_input ;;
        # PyTorch compiles the networks for every batch size, for minutes
        engine-torch) tests "$name" tests/engine -k 'torch and not 40' ;;
        pipeline-quick) run "$name" python3 -m benchmarks.pipeline --quick -o "$out/pipeline-quick.json" ;;
        pipeline) run "$name" python3 -m benchmarks.pipeline -o "$out/pipeline.json" ;;
        engine-tests) tests "$name" tests/engine -k 'not torch or 40' ;;
        train-tests) tests "$name" tests/train/test_train_on_gpu.py ;;
        kernels) run "$name" python3 -m benchmarks.kernels -o "$out/kernels.json" ;;
        live) run "$name" python3 -m benchmarks.live -o "$out/live.json" ;;
        esac
    done
    return "$failed"
}

everything "${names[@]}" 2>&1 | tee -a "$out/log.txt"
exit "${PIPESTATUS[0]}"
