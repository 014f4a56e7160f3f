"""The dense part of a cut: weights, optimizer state and random state, as safetensors.

Optimizer state is kept by parameter name (`layers.0.attention.weight/exp_avg`), so a cut says what it holds and does not
depend on the order of parameters.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memory_store.errors import CutError

WEIGHTS = "dense.safetensors"
OPTIMIZER = "dense-optimizer.safetensors"
_RANDOM = "random-state"


def save_dense(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Path]:
    """Write the dense part into `folder`; what comes later changes nothing in it. Returns the files, not synced yet.

    Raises OSError where the disk does not take them.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    state: dict[str, Tensor] = {_RANDOM: torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    for file, tensors in ((WEIGHTS, weights), (OPTIMIZER, state)):
        try:
            save_file(tensors, folder / file)
        except SafetensorError as error:
            raise OSError(f"{folder / file} can't be written: {error}") from None
    return [folder / WEIGHTS, folder / OPTIMIZER]


def load_weights(path: Path, model: nn.Module) -> None:
    """Read the weights at `path` into `model`. Raises CutError if they are another model's."""
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise CutError(f"{path} does not fit the model of this job: {error}") from None


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read the optimizer's state and the random state at `path`. Raises CutError if they can't be read."""
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise CutError(f"{path} can't be read: {error}") from None
    torch.set_rng_state(state.pop(_RANDOM))
    for name, parameter in model.named_parameters():
        prefix = name + "/"
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if found:
            # The count of steps stays on the CPU, where AdamW keeps it; the moments lie beside their parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }
