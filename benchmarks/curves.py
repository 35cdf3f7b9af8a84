"""The curves of a run, read from its TensorBoard event files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves of a folder's event files: for each name, its value at each step."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: every step
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in tags}
