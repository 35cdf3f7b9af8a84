"""The action `export`: the network as an ONNX file that runs without PyTorch.

Batch, height and width stay free. Each scan of the IRNN becomes one ONNX Scan along an axis of
the image, forwards or backwards; everything else is standard operators already.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx.inliner
import onnx.parser
import onnxruntime
import torch
from onnxscript.values import Op, Opset
from torch import nn

from engine import checkpoint
from engine.derainer import Derainer
from engine.ranks import Ranks
from irnn_cuda.reference import DIRECTIONS
from settings import Settings, UserError
from system.files import check_no_overlap, require_writable, write_atomically

OPSET = 20
INPUT, OUTPUTS = "rainy", ("mask", "clean")
TOLERANCE = 1e-4  # between the outputs of PyTorch and of the ONNX file
TEST_SHAPES = ((1, 3, 32, 48), (2, 3, 17, 5), (1, 3, 1, 1))
# One direction of the IRNN. The state of its Scan is `weight * y + bias` for the next element: 0 at
# the beginning, since the first element of a scan takes neither weight nor bias.
SCAN = """
  row_{name} = Constant<value_ints = [{row}]>()
  weight_{name} = Gather<axis = 1>(weights, row_{name})
  bias_{name} = Gather<axis = 1>(biases, row_{name})
  line_{name} = Gather<axis = {along}>(x, zero)
  size_{name} = Shape(line_{name})
  state_{name} = ConstantOfShape(size_{name})
  last_{name}, y_{name} = Scan<
    num_scan_inputs = 1,
    scan_input_axes = [{along}], scan_input_directions = [{backwards}],
    scan_output_axes = [{along}], scan_output_directions = [{backwards}],
    body = scan_{name} (float[N, C, L] state, float[N, C, L] value)
      => (float[N, C, L] next, float[N, C, L] y) {{
        total = Add(state, value)
        y = Relu(total)
        product = Mul(weight_{name}, y)
        next = Add(product, bias_{name})
      }}
  >(state_{name}, x)
"""


def export(settings: Settings) -> int:
    """Write checkpoint `-m` to the ONNX file `-o`. Returns the exit status, 0.

    Raises:
        UserError: a bad checkpoint, another suffix, a file that cannot be written, or outputs that
            differ from those of PyTorch.
    """
    path = Path(settings.output)
    if path.suffix != ".onnx":
        raise UserError(f"-o: {settings.output!r}: expected the name of an .onnx file")
    if Ranks().is_distributed:
        raise UserError("-a export: runs in one process; start it without torchrun")
    source = checkpoint.checkpoint_path(settings)
    derainer = Derainer.load(source, torch.device("cpu"), ema=not settings.no_ema)
    check_no_overlap([source], [path], "-o")
    require_writable(path.parent)
    net = derainer.net.requires_grad_(False)
    model = convert_network(net)
    metadata = {
        "input": f"{INPUT}: (N,3,H,W) float32, BGR, 0..1",
        "output": "mask: (N,1,H,W) in 0..1; clean: (N,3,H,W), BGR, to be clipped to 0..1",
        "channel_order": "BGR",
        "checkpoint": str(source),
        "step": str(derainer.step),
        "direction_attention": str(derainer.direction_attention),
        "moving_average": str(derainer.averaged),
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    difference = measure_difference(onnxruntime.InferenceSession(data), net)
    if not difference <= TOLERANCE:  # nan is none either
        raise UserError(f"{path}: not written: {difference:.1e} from the outputs of PyTorch")
    write_atomically(path, data)
    size, count = f"{len(data) / 2**20:.2f} MiB", len(TEST_SHAPES)
    print(
        f"{path}: {size}, opset {OPSET}, BGR, within {difference:.1e} of PyTorch on {count} sizes"
    )
    return 0


def measure_difference(session: onnxruntime.InferenceSession, net: nn.Module) -> float:
    """The largest difference between the outputs of an ONNX session and of the network."""
    differences = []
    for shape in TEST_SHAPES:
        rainy = np.random.default_rng(0).random(shape, np.float32)
        with torch.inference_mode():
            expected = net(torch.from_numpy(rainy))
        for tensor, array in zip(expected, session.run(OUTPUTS, {INPUT: rainy}), strict=True):
            differences.append(np.abs(tensor.numpy() - array).max())
    return float(np.max(differences))


def convert_network(net: nn.Module) -> onnx.ModelProto:
    """The network as an ONNX model of standard operators."""
    names = ("x", "weight", "bias", "y")
    *inputs, y = (onnx.defs.OpSchema.FormalParameter(name, "tensor(float)") for name in names)
    schema = onnx.defs.OpSchema("irnn", "spanet", 1, inputs=inputs, outputs=[y])
    irnn = Op(Opset("spanet", 1), "irnn", schema)  # one node, until its function is put in
    axes = {0: "batch", 2: "height", 3: "width"}
    free_dims = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (torch.rand(2, 3, 24, 20),), dynamo=True, verbose=False, input_names=[INPUT],
            output_names=OUTPUTS, dynamic_shapes=(free_dims,), opset_version=OPSET,
            custom_translation_table={torch.ops.spanet.irnn.default: irnn},
        )  # fmt: skip
    assert program is not None  # it is with dynamo
    model = program.model_proto
    model.functions.append(_irnn_function())
    model = onnx.inliner.inline_local_functions(model)
    standard = [opset for opset in model.opset_import if opset.domain != "spanet"]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    return model


def _irnn_function() -> onnx.FunctionProto:
    """The IRNN in standard operators: a Scan for each direction, concatenated."""
    text = f'<domain: "spanet", opset_import: ["" : {OPSET}]> irnn (x, weight, bias) => (scans) {{'
    text += "weights = Transpose(weight) biases = Transpose(bias) zero = Constant<value_int = 0>()"
    for row, (name, (along, backwards)) in enumerate(DIRECTIONS.items()):
        text += SCAN.format(name=name, row=row, along=along, backwards=int(backwards))
    scans = ", ".join(f"y_{name}" for name in DIRECTIONS)
    return onnx.parser.parse_function(text + f"scans = Concat<axis = 1>({scans}) }}")
