"""What a run goes on from, beside its weights: looked at before any of it is used."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.checkpoint import LAST_STEP, described, is_number, is_plain
from settings import UserError

LONGEST_NAME = 64  # characters of a run's name, which its event files bear
MOMENTS = ("exp_avg", "exp_avg_sq")


def optimiser_state(path: Path, found: Any, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state of Adam for its load_state_dict, with this optimiser's own settings.

    Those are of the run; the state of each parameter is its step, a number, and its two moments.

    Raises:
        UserError: it is missing, is not one of these parameters, or its values are out of range.
    """
    if found is None:
        raise UserError(
            f"{path}: holds only weights, and no optimiser state to resume training from"
        )
    own = optimiser.state_dict()
    (group,) = own["param_groups"]
    parameters = optimiser.param_groups[0]["params"]
    try:
        (saved,) = found["param_groups"]
        pairs = zip(group["params"], saved["params"], parameters, strict=True)
        if set(found["state"]) - set(saved["params"]):
            raise ValueError("it is of other parameters")
        state = {
            ours: _state_of(found["state"][theirs], parameter)
            for ours, theirs, parameter in pairs
            if theirs in found["state"]
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: its optimiser state is not that of this network: {error}"
        ) from None
    return {"state": state, "param_groups": [group]}


def _state_of(found: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """The state of one parameter. Raises ValueError, KeyError or TypeError."""
    step = found["step"]
    if is_plain(step) and step.numel() == 1:
        step = step.item()
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if not is_number(step, 0, LAST_STEP):
        raise ValueError(f"a step of {described(step)}")
    for key in MOMENTS:
        _require_moment(key, found[key], parameter)
    if (found["exp_avg_sq"] < 0).any():
        raise ValueError("exp_avg_sq is negative")
    return {"step": found["step"]} | {key: found[key] for key in MOMENTS}


def _require_moment(key: str, moment: Any, parameter: nn.Parameter) -> None:
    if not is_plain(moment):
        raise ValueError(f"{key} is {described(moment)}, or not a plain tensor")
    if moment.shape != parameter.shape:
        raise ValueError(f"{key} of {tuple(moment.shape)}")
    # One value in the place of many, which the optimiser could not change one by one.
    if moment.untyped_storage().nbytes() < moment.numel() * moment.element_size():
        raise ValueError(f"{key} has fewer values than elements")
    if not moment.to(parameter.dtype).isfinite().all():
        raise ValueError(f"{key} is not finite")


def require_random_state(path: Path, found: Any) -> None:
    """Raise UserError unless found is a dictionary of states of torch's generators."""
    if not isinstance(found, dict) or not all(
        is_plain(state, (torch.uint8,)) and state.dim() == 1
        for key, state in found.items()
        if key in ("torch", "cuda")
    ):
        raise UserError(f"{path}: its random state is damaged: it is {described(found)}")


def best_score(path: Path, found: Any) -> dict[str, Any] | None:
    """A saved best score: "psnr" of "step", the "step" of the last one "scored", and its "list".

    Raises UserError.
    """
    if found is None:
        return None
    right = (
        isinstance(found, dict)
        and isinstance(found.get("psnr"), float)
        and is_number(found.get("step"), 0, LAST_STEP)
        and is_number(found.get("scored"), 0, LAST_STEP)
        and isinstance(found.get("list"), str)
    )
    if not right:
        raise UserError(f"{path}: 'best' is {described(found)}; expected a score of --val-list")
    return found


def run_name(path: Path, found: str | None, own: str) -> str:
    """The name of a saved run, or own where none was saved. Raises UserError."""
    if found is None:
        return own
    if not found.isalnum() or len(found) > LONGEST_NAME:
        raise UserError(f"{path}: 'run' is {found!r}; expected letters and digits")
    return found
