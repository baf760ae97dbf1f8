"""Settings of the whole suite: one torch thread a worker, since pytest-xdist already fills the cores."""

import torch

torch.set_num_threads(1)
