"""Keys of the Go server's config.yaml that have another name or no meaning here."""

# of each model; one of them is enough
PRELOAD = ("preload", "preload_model", "preload_backgrounds")

# What that server takes for "not set".
ZERO_IS_DEFAULT = {
    ("server", "max_message_size_mb"),
    ("capacity", "max_models"),
    ("capacity", "max_memory_gb"),
    ("output", "jpeg_quality"),
}

# They may be there, and nothing follows from them.
WITHOUT_MEANING = {
    "server": {"worker_count_per_gpu", "queue_size"},
    "gpus": {"memory_gb_per_gpu", "allow_multi_gpu_models"},
    "capacity": {"background_cache_frames"},
    "onnx": {
        "library_path",
        "cuda_streams_per_worker",
        "intra_op_threads",
        "inter_op_threads",
    },
    "inference_server": {"url", "timeout_seconds", "max_retries"},
    "logging": {
        "log_inference_times",
        "log_gpu_utilization",
        "log_compositing_times",
        "log_cache_stats",
        "save_debug_files",
        "buffered_logging",
        "sample_rate",
        "auto_flush",
        "flush_interval_ms",
    },
}
MODEL_WITHOUT_MEANING = {
    "crops_video_path",
    "rois_video_path",
    "crops_frames_dir",
    "rois_frames_dir",
}
