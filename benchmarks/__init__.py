import engine  # noqa: F401  before PyTorch: it decides how OpenMP's threads wait
