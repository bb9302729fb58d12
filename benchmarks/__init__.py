import os

# As in `engine`, and before PyTorch is imported: how OpenMP's threads wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
