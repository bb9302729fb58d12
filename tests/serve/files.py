"""A config.yaml as people have them for the Go server, and the files that it names."""

from pathlib import Path

from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "serve" / "config.yaml"

GO = """\
server:
  port: ":50053"              # gRPC
  max_message_size_mb: 100
  worker_count_per_gpu: 8
  queue_size: 50

gpus:
  enabled: true
  count: 1
  memory_gb_per_gpu: 24
  assignment_strategy: "least-loaded"
  allow_multi_gpu_models: false

capacity:
  max_models: 40
  max_memory_gb: 20
  background_cache_frames: 600
  eviction_policy: "lru"
  idle_timeout_minutes: 60

onnx:
  library_path: "/usr/lib/libonnxruntime.so"
  cuda_streams_per_worker: 2
  intra_op_threads: 4
  inter_op_threads: 2

output:
  format: "jpeg"
  jpeg_quality: 80

logging:
  log_inference_times: true
  log_level: "WARN"
  log_compositing_times: true
  log_cache_stats: true
  save_debug_files: false
  buffered_logging: true
  sample_rate: 0
  auto_flush: true
  flush_interval_ms: 100

models_root: "people"

models:
  anna:
    model_path: "anna/checkpoint/model_best.onnx"
    background_dir: "anna/frames"
    source_video: "anna/full_body_video.mp4"     # used if there are no frames
    crops_video_path: "anna/crops_328_video.mp4"
    rois_video_path: "anna/rois_320_video.mp4"
    crops_frames_dir: "anna/crops_frames"
    rois_frames_dir: "anna/rois_frames"
    crop_rects_path: "anna/crop_rects.json"
    num_frames: 523
    preload_backgrounds: true
    preload_model: true
    preferred_gpu: 0

  "no":
    model_path: "anna/checkpoint/model_best.onnx"
    background_dir: "anna/frames"
    crop_rects_path: "anna/crop_rects.json"
    num_frames: 2000
    preload_backgrounds: false
    preload_model: false

  1e3:
    model_path: "anna/checkpoint/model_best.onnx"
    background_dir: "of_the_film"
    source_video: "film.mp4"
    crop_rects_path: "anna/crop_rects.json"
    num_frames: 2000
    preload_backgrounds: true
    preload_model: false
    preferred_gpu: -1
"""


def go_folder(folder: Path, text: str = GO) -> Path:
    """Write the files, empty but for config.yaml, and return its path."""
    people = folder / "people"
    (people / "anna" / "frames").mkdir(parents=True)
    (people / "anna" / "checkpoint").mkdir()
    for name in ("anna/checkpoint/model_best.onnx", "anna/crop_rects.json", "film.mp4"):
        (people / name).touch()
    path = folder / "config.yaml"
    path.write_text(text)
    return path
