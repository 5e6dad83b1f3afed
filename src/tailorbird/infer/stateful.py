"""Rewrites of an OpenVINO graph: keys and values stay inside it, and attention becomes one operation.

The CPU plugin fuses cache, grouped heads and attention only where they have the form that language models
exported by optimum-intel have (its StatefulSDPAFusion); the rewrites bring them there. They change no result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import openvino as ov


def hold(model: ov.Model, num_held: int, shape: tuple[int, int]) -> None:
    """Make state of the last `num_held` inputs, which the last outputs replace after each call.

    The input before them says which row of the state each row of the next call goes on with.

    Args:
        shape: heads and channels of what is held, (B, K, S, D); it begins with S = 0.
    """
    from openvino import opset13 as op
    from openvino._offline_transformations import apply_make_stateful_transformation

    inputs, outputs = model.inputs[-num_held:], model.outputs[-num_held:]
    pairs = {}
    for i, (old, new) in enumerate(zip(inputs, outputs, strict=True)):
        old.get_tensor().set_names({f"past{i}"})
        new.get_tensor().set_names({f"now{i}"})
        pairs[f"past{i}"] = f"now{i}"
    rows = model.inputs[-num_held - 1].get_node()
    apply_make_stateful_transformation(model, pairs)
    num_rows = op.gather(op.shape_of(rows, output_type="i64"), _ints([0]), _ints(0))
    empty = op.concat([num_rows, _ints([shape[0]]), _ints([0]), _ints([shape[1]])], axis=0)
    for node in _nodes(model, "ReadValue"):
        node.set_arguments([op.broadcast(op.constant(np.float32(0)), empty).output(0)])
    model.validate_nodes_and_infer_types()


def widen_heads(model: ov.Model, group: int) -> None:
    """Write grouped attention, which torch's frontend makes 5-dimensional, over heads that are repeated.

    group: query heads that read one head of keys and values. The plugin recognises the repetition, and does
    not carry it out.
    """
    from openvino import opset13 as op

    def repeat(node: Any) -> Any:
        held = node.input_value(0)  # (B, K, S, D): what was made (B, K, 1, S, D)
        heads, channels = (held.get_partial_shape()[i].get_length() for i in (1, 3))
        wide = op.broadcast(
            op.unsqueeze(held, _ints(2)), _ints([1, 1, group, 1, 1]), broadcast_spec="BIDIRECTIONAL"
        )
        return op.reshape(wide, _ints([0, heads * group, -1, channels]), special_zero=True)

    for node in _nodes(model, "ScaledDotProductAttention"):
        query, key, value, mask = (node.input_value(i).get_node() for i in range(4))
        inputs = query.input_value(0), repeat(key), repeat(value), mask.input_value(0)
        whole = op.scaled_dot_product_attention(*inputs).output(0)  # (B, H, T, D)
        (after,) = node.output(0).get_target_inputs()  # it brings (B, K, group, T, D) back to four dimensions
        for target in after.get_node().output(0).get_target_inputs():
            target.replace_source_output(whole)
    model.validate_nodes_and_infer_types()


def pack_int4(model: ov.Model) -> None:
    """Store weights that come in groups, (out, groups, GROUP) in int8 with 16 levels, two in a byte."""
    import openvino

    for node in _nodes(model, "Constant"):
        if node.get_element_type() == openvino.Type.i8 and len(node.get_output_shape(0)) == 3:
            values = node.get_data().view(np.uint8)  # the low half of a byte is the number's int4
            packed = (values[..., ::2] & 15) | (values[..., 1::2] << 4)
            tensor = openvino.Tensor(packed.ravel(), node.get_output_shape(0), openvino.Type.i4)
            narrow = openvino.op.Constant(tensor, shared_memory=False).output(0)
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(narrow)
    model.validate_nodes_and_infer_types()


def _nodes(model: ov.Model, kind: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def _ints(values: Any) -> Any:
    from openvino import opset13 as op

    return op.constant(np.array(values, np.int64))
