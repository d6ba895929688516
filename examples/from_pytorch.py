"""Bring a PyTorch network, with proof that it computes the same.

Run: python from_pytorch.py DIR
Needs PyTorch. Writes DIR/weights.safetensors, IN.npy, OUT.npy and DIR/model.safetensors.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


class Network(torch.nn.Module):
    """Any nn.RNN, nn.GRU or nn.LSTM, and the nn.Linear after it if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 16, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32[B, T, 3] to float32[B, T, 2]."""
        return self.head(self.lstm(x)[0])


directory = Path(sys.argv[1])
torch.manual_seed(0)
network = Network().eval()
x = torch.randn(1, 100, 3)
save_file(network.state_dict(), directory / "weights.safetensors")
np.save(directory / "IN.npy", x[0].numpy())
np.save(directory / "OUT.npy", network(x)[0].detach().numpy())

# Kind, depth and sizes are read off the shapes; nothing is written if the outputs differ.
command = [sys.executable, "-m", "streamrnn_server", "import", "weights.safetensors"]
command += ["-o", "model.safetensors", "--check", "IN.npy", "OUT.npy"]
sys.exit(subprocess.run(command, cwd=directory, check=False).returncode)
