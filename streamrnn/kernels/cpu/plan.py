"""A loaded model as compiled code sees it: the plan, its layers, and a product to compute.

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
    "Plan",
    "Product",
    "Stages",
    "Weights",
    "input_at",
    "layer_at",
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


class Weights(Struct):
    """The packed weights of a product, see `streamrnn.kernels.cpu.pack.Packed`."""

    panels: I64  # address of the first, or 0: there is no such product
    panel_bytes: I64
    first_weight: I64  # bytes from a panel's start to its weights for x
    first_h_weight: I64  # and for h
    num_panels: I64


class Layer(Struct):
    """One layer."""

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
    joint: Weights
    x_alone: Weights
    h_alone: Weights
    projection: Weights
    epsilon: Annotated[float, np.float32]


class Plan(Struct):
    """One model, and scratch for one thread."""

    num_inputs: I64
    output_size: I64
    row_bytes: I64
    inputs_are_features: I64  # x can be read as it comes: nothing to transform
    inputs: I64  # address of Input[num_inputs]
    num_layers: I64
    layers: I64  # address of Layer[num_layers]
    last_h: I64  # bytes from the row to the last layer's h
    last_size: I64  # its elements
    cover: I64  # address of the function that computes a product
    head: Weights
    head_activation: I64
    output_levels: I64  # address of int64[output_size]: bytes to the remembered level, or -1
    output_centers: I64  # address of float32[output_size]
    outputs_are_plain: I64  # no level and no center to add
    # Scratch. Strides are in bytes.
    product: Product
    features: I64  # address of float32[MAX_BATCH_ROWS, feature_stride]
    feature_stride: I64
    hidden: I64  # address of float32[MAX_BATCH_ROWS, hidden_stride]: new h, head's output
    hidden_stride: I64
    sequence: I64  # address of float32[MAX_BATCH_ROWS, hidden_stride]: a layer's h of each step
    sums: I64  # address of float32[MAX_BATCH_ROWS, sums_stride]: accumulators after the x phase
    sums_stride: I64
    levels: I64  # address of float32[MAX_BATCH_ROWS, level_stride]: what was remembered at a step
    level_stride: I64
    x_pointers: I64  # addresses of int64[MAX_BATCH_ROWS]
    h_pointers: I64
    level_pointers: I64
    y_pointers: I64
    staged_pointers: I64


plan_at = pointer_to(Plan)
product_at = pointer_to(Product)
stages_at = pointer_to(Stages)
layer_at = pointer_to(Layer)
input_at = pointer_to(Input)
