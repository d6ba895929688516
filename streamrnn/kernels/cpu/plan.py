"""A loaded model as compiled code sees it: the plan, its operations, and a product to compute.

There is one compiled program for all models. Sizes, cells and offsets are data in the plan; only
the tiles' shapes are constants of the machine code, so the cache on disk serves every model and no
request waits for a compilation.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.row_layout import Input
from streamrnn.kernels.structs import I64, Struct

__all__ = [
    "MAX_BATCH_ROWS",
    "Layer",
    "Op",
    "Plan",
    "Product",
    "Stages",
    "Weights",
    "input_at",
    "layer_at",
    "op_at",
    "plan_at",
    "product_at",
    "stages_at",
]

MAX_BATCH_ROWS = 96  # rows of a batch: a multiple of every tile's rows


class Product(Struct):
    """One product of packed weights with a vector a row: the arguments of `run_product`."""

    kind: I64  # of the tile: `DENSE`, `GRU` or `LSTM`
    num_panels: I64
    num_rows: I64
    weights: I64  # address of the first panel's weights
    panel_bytes: I64
    start: I64  # address of the accumulators' first values: biases, or sums of a partial product
    start_row_bytes: I64  # 0 for biases, which are the same for every row
    start_panel_bytes: I64
    x_pointers: I64  # address of int64[num_rows]: where each row's x lies
    num_x: I64
    h_pointers: I64  # as x_pointers; may be those where num_h is 0
    num_h: I64
    out: I64  # address of the first row's result
    out_bytes: I64  # between rows
    cell_offset: I64  # bytes from h to c
    is_partial: I64  # store the accumulators as they are: another product goes on from them
    scales: I64  # address of the first panel's scales (int8)
    block_cover: I64  # address of what covers large weights (see `blocks`), or 0
    block_bytes: I64  # of weights that all rows go over before the next ones
    block_sums: I64  # address of `BLOCK_SUMS_BYTES` of scratch


class Weights(Struct):
    """The packed weights of a product, see `streamrnn.kernels.cpu.pack.Packed`."""

    panels: I64  # address of the first, or 0: there is no such product
    panel_bytes: I64
    first_weight: I64  # bytes from a panel's start to its weights for x
    first_h_weight: I64  # and for h
    num_panels: I64


class Layer(Struct):
    """One recurrent layer."""

    kind: I64  # of its tile
    activation: I64  # that follows the tile
    weights: Weights  # of a fused layer
    num_x: I64
    hidden_size: I64
    h_offset: I64  # bytes from the row
    num_panels: I64  # of one gate
    stages: I64  # address of a staged layer's `Stages`, which has its weights; 0 for a fused one


class Stages(Struct):
    """What a staged layer computes with. A block is one vector of H floats, padded."""

    is_lstm: I64
    gates_are_hard: I64
    candidate: I64  # activation of n or g; TANH has passes of its own
    shown: I64  # activation of c on its way to the output
    reset_after: I64
    has_norm: I64
    output_size: I64  # elements of h
    h_bytes: I64  # of h in a row, padded: c follows it there
    num_joint: I64  # gates, the first ones, whose products with x and with h have one sum
    num_apart: I64  # the other gates
    h_block: I64  # where the first sum of `h_alone` goes
    peepholes: I64  # address of three blocks: i, f, o; zeros without peepholes
    x_gain: I64  # address of a block a gate
    x_shift: I64  # address of a block a gate
    h_gain: I64  # address of a block a gate
    h_shift: I64  # address of one block: of a GRU's n
    cell_gain: I64  # address of one block
    cell_shift: I64  # address of one block
    mask: I64  # address of a block a gate: 1 where there is a unit, 0 in the padding
    zeros: I64  # address of one block
    ones: I64  # address of one block: the slopes of an elu
    joint: Weights
    x_alone: Weights
    h_alone: Weights
    projection: Weights
    epsilon: Annotated[float, np.float32]


class Op(Struct):
    """One operation on the frames of a step: see `streamrnn.kernels.cpu.frames.ops`.

    A frame's address is that of its first place, in scratch, in a stream's row or in its input;
    from place to place it is a pitch.
    """

    code: I64
    in_base: I64  # what is read: SCRATCH, ROW or INPUT
    in_offset: I64  # bytes from the base
    in_pitch: I64  # bytes from place to place, of a product from window to window
    other_base: I64  # what is read beside it, or where an operation keeps its state
    other_offset: I64
    other_pitch: I64
    out_base: I64  # SCRATCH or ROW
    out_offset: I64
    out_pitch: I64
    length: I64  # places of the output
    size: I64  # channels of the output
    is_held: I64  # whether the output can be computed from the row alone
    layer: I64  # address of a recurrent one's `Layer`
    weights: Weights  # of a product
    num_x: I64  # floats of a window
    window: I64  # places of a pool, taps of a convolution over time
    step: I64  # places from window to window, steps from tap to tap
    gain: I64  # addresses of a float32 a channel
    bias: I64  # or 0
    slopes: I64
    mask: I64
    activation: I64
    pads: I64  # whether what lies after the channels of a place has to be set to zero
    runs: I64  # address of int64[num_runs, 3]: bytes from, bytes to, and how many
    num_runs: I64
    factor: Annotated[float, np.float32]  # of what is read; the epsilon of a norm
    other_factor: Annotated[float, np.float32]


class Plan(Struct):
    """One model, and scratch for one thread."""

    num_inputs: I64
    output_size: I64
    row_bytes: I64
    inputs_are_features: I64  # x can be read as it comes: nothing to transform
    inputs: I64  # address of Input[num_inputs]
    num_ops: I64
    ops: I64  # address of Op[num_ops]
    cover: I64  # address of the function that computes a product
    output_offset: I64  # bytes from a row of the scratch to the last frame
    output_pitch: I64
    output_channels: I64
    last_y: I64  # bytes from the row to the last y; -1 where the state gives it
    steps_alone: I64  # whether an operation reads what a later one made at the step before
    has_mask: I64
    mask_value: I64  # of tokens; else the bits of a float32
    block_rows: I64  # rows that are computed together, at most `MAX_BATCH_ROWS`
    output_levels: I64  # address of int64[output_size]: bytes to the remembered level, or -1
    output_fills: I64  # address of float32[output_size]: added where no level is remembered yet
    output_centers: I64  # address of float32[output_size]
    outputs_are_plain: I64  # no level and no center to add
    # Scratch. Strides are in bytes.
    product: Product
    features: I64  # address of float32[MAX_BATCH_ROWS, feature_stride]
    feature_stride: I64
    values: I64  # address of float32[block_rows, value_stride]: every frame of a step
    value_stride: I64
    sums: I64  # address of float32[MAX_BATCH_ROWS, sums_stride]: accumulators after the x phase
    sums_stride: I64
    levels: I64  # address of float32[MAX_BATCH_ROWS, level_stride]: what was remembered at a step
    level_stride: I64
    x_pointers: I64  # addresses of int64[MAX_BATCH_ROWS]
    input_pointers: I64
    row_pointers: I64
    masked: I64  # rows, xs and ys of the streams that take a step, then of those that do not
    h_pointers: I64
    level_pointers: I64
    y_pointers: I64
    staged_pointers: I64


plan_at = pointer_to(Plan)
product_at = pointer_to(Product)
stages_at = pointer_to(Stages)
layer_at = pointer_to(Layer)
op_at = pointer_to(Op)
input_at = pointer_to(Input)
