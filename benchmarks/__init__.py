import os

# As `engine` does, and before PyTorch: it decides how OpenMP's threads wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
