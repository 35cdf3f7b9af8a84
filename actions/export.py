"""The action `export`: the network as an ONNX file that runs without PyTorch.

Batch, height and width stay free. Each scan of the IRNN becomes one ONNX Scan along an axis of
the image, forwards or backwards; everything else is standard operators already.
"""

import logging
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from engine import checkpoint
from engine.derainer import Derainer
from engine.ranks import Ranks
from irnn_cuda.reference import DIRECTIONS
from settings import Settings, UserError
from system.files import check_no_overlap, require_writable, write_atomically

OPSET = 20
INPUT, OUTPUTS = "rainy", ("mask", "clean")
TOLERANCE = 1e-4
CHECKED = ((1, 3, 32, 48), (2, 3, 17, 5), (1, 3, 1, 1))
# One direction of the IRNN, with the next step's `weight * y + bias` as the state: nothing at
# first, since the first element of a scan takes neither.
SCAN = """
  row_{name} = Constant<value_int = {row}>()
  weights_{name} = Gather<axis = 0>(weight, row_{name})
  biases_{name} = Gather<axis = 0>(bias, row_{name})
  weight_{name} = Unsqueeze(weights_{name}, last)
  bias_{name} = Unsqueeze(biases_{name}, last)
  images_{name} = Shape<start = 0, end = 2>(x)
  line_{name} = Shape<start = {across}, end = {across_end}>(x)
  size_{name} = Concat<axis = 0>(images_{name}, line_{name})
  nothing_{name} = ConstantOfShape(size_{name})
  state_{name}, w_{name}, b_{name}, y_{name} = Scan<
    num_scan_inputs = 1,
    scan_input_axes = [{along}], scan_input_directions = [{backwards}],
    scan_output_axes = [{along}], scan_output_directions = [{backwards}],
    body = scan_{name} (float[N, C, L] state, float[C, 1] w, float[C, 1] b, float[N, C, L] value)
      => (float[N, C, L] next, float[C, 1] same_w, float[C, 1] same_b, float[N, C, L] y) {{
        total = Add(state, value)
        y = Relu(total)
        product = Mul(w, y)
        next = Add(product, b)
        same_w = Identity(w)
        same_b = Identity(b)
      }}
  >(nothing_{name}, weight_{name}, bias_{name}, x)
"""


def export(settings: Settings) -> int:
    """Write checkpoint `-m` to the ONNX file `-o`. Returns the exit status, 0.

    Raises:
        UserError: a bad checkpoint, another suffix, a package missing, a file that cannot be
            written, or outputs that are not those of PyTorch.
    """
    path = Path(settings.output)
    if path.suffix != ".onnx":
        raise UserError(f"-o: {settings.output!r}: expected the name of an .onnx file")
    if Ranks().is_distributed:
        raise UserError("-a export: runs in one process; start it without torchrun")
    onnx, onnxruntime = _package("onnx"), _package("onnxruntime")
    _package("onnxscript")
    source = checkpoint.checkpoint_path(settings)
    checkpoint.require_checkpoint(source)
    derainer = Derainer.load(source, torch.device("cpu"))
    check_no_overlap([derainer.path], [path], "-o")
    require_writable(path.parent)
    net = derainer.net.requires_grad_(False)
    model = converted(net)
    about = {
        "input": f"{INPUT}: (N,3,H,W) float32, BGR, 0..1",
        "output": "mask: (N,1,H,W) in 0..1; clean: (N,3,H,W), BGR, to be clipped to 0..1",
        "channel_order": "BGR",
        "checkpoint": str(derainer.path),
        "step": str(derainer.step),
        "direction_attention": str(derainer.direction_attention),
    }
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    found = difference(onnxruntime.InferenceSession(data), net)
    if not found <= TOLERANCE:
        raise UserError(f"{path}: not written: its outputs are {found:.1e} from those of PyTorch")
    write_atomically(path, data)
    print(
        f"{path}: {len(data) / 2**20:.2f} MiB, opset {OPSET}, BGR input, within {found:.1e} of "
        f"PyTorch on {len(CHECKED)} sizes"
    )
    return 0


def difference(runtime, net: nn.Module) -> float:
    """The largest difference between the outputs of an ONNX session and of the network."""
    worst = 0.0
    for shape in CHECKED:
        rainy = np.random.default_rng(0).random(shape, np.float32)
        with torch.inference_mode():
            expected = net(torch.from_numpy(rainy))
        for ours, theirs in zip(expected, runtime.run(OUTPUTS, {INPUT: rainy}), strict=True):
            worst = max(worst, float(np.abs(ours.numpy() - theirs).max()))
    return worst


def _package(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        raise UserError(
            f"-a export: needs the package {name}; expected `pip install -r requirements-onnx.txt`"
        ) from None


def converted(net: nn.Module):
    """The network as an ONNX model of standard operators."""
    import onnx
    import onnx.inliner
    from onnxscript.values import Opset

    _declare_irnn()
    spanet = Opset("spanet", 1)
    table = {torch.ops.spanet.irnn.default: lambda x, weight, bias: spanet.irnn(x, weight, bias)}
    free = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height"),
        3: torch.export.Dim("width"),
    }
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (torch.rand(2, 3, 24, 20),),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=OUTPUTS,
                dynamic_shapes=(free,),
                custom_translation_table=table,
                opset_version=OPSET,
            )
    finally:
        log.setLevel(level)
    model = program.model_proto
    model.functions.append(_irnn_function())
    model = onnx.inliner.inline_local_functions(model)
    standard = [opset for opset in model.opset_import if opset.domain != "spanet"]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    return model


@cache
def _declare_irnn() -> None:
    """Have ONNX know the operator's inputs and output, for as long as it is one node."""
    from onnx import defs

    names = [defs.OpSchema.FormalParameter(name, "T") for name in ("x", "weight", "bias", "y")]
    defs.register_schema(
        defs.OpSchema(
            "irnn",
            "spanet",
            1,
            inputs=names[:3],
            outputs=names[3:],
            type_constraints=[("T", ["tensor(float)"], "")],
        )
    )


def _irnn_function():
    """The operator by standard ones: a scan a direction, concatenated."""
    import onnx.parser

    text = f'<domain: "spanet", opset_import: ["" : {OPSET}]>\nirnn (x, weight, bias) => (scans)\n'
    text += "{\n  last = Constant<value_ints = [1]>()\n"
    for row, (name, (along, backwards)) in enumerate(DIRECTIONS.items()):
        across = 5 - along  # the other of the dimensions 2 and 3
        text += SCAN.format(name=name, row=row, along=along, backwards=int(backwards),
                            across=across, across_end=across + 1)  # fmt: skip
    return onnx.parser.parse_function(
        text + f"  scans = Concat<axis = 1>({', '.join(f'y_{name}' for name in DIRECTIONS)})\n}}"
    )
