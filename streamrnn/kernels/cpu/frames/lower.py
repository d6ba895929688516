"""Lowering: a model's layers become operations on frames in scratch memory.

Every frame has a place of its own in a row of the scratch, the same for all streams. What a
convolution reads beyond a frame's ends are margins, which are zero and never written: so its
windows are overlapping rows of one matrix, and nothing is copied. Channels are padded to 16 floats
from place to place, and the weights of what reads them have zeros there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from streamrnn.errors import ModelError
from streamrnn.kernels.activations import ACTIVATIONS
from streamrnn.kernels.cpu.frames import ops
from streamrnn.kernels.cpu.frames.builder import (
    Array,
    Frame,
    FrameBuilder,
    columns_of,
    fill_weights,
)
from streamrnn.kernels.cpu.pack import pack
from streamrnn.kernels.gates import DENSE, head_matrices, padded
from streamrnn.model.layers import frame, memory
from streamrnn.model.layers.base import Layer
from streamrnn.model.parameters import layer_parameters
from streamrnn.model.spec import LayerSpec

__all__ = ["Lowering"]


_MAX_RUNS = 1 << 18  # of one copy
_MAX_SPREAD = 1 << 26  # elements of a matrix with zeros between its groups


class Lowering(FrameBuilder):
    """Lowers the layers of one model, and its head.

    Attributes
    ----------
    output : Frame
        The last one.
    """

    def lower(self) -> None:
        """Append the operations of a step."""
        if not self.spec.folds_input_scales:
            self._scale_inputs()
        for k, layer in enumerate(self.spec.layers):
            self.is_held = self.graph.from_state[k]
            self.k = k
            self.parameters = layer_parameters(self.all_parameters, k)
            self.frames[k] = self._lower(layer)
        self.output = self.frames[len(self.spec.layers) - 1]
        if self.spec.head is not None:
            self.is_held = self.graph.output_is_state
            self.output = self._lower_head()
            self.frames[len(self.spec.layers)] = self.output
            if not self.spec.folds_output_scales:
                self.output = self._scale_outputs(self.output)
        self.is_held = False
        for k in self.graph.kept:
            target = self.before(k)
            self.copy(self.frames[k], target)
        self.num_floats += padded(1)  # vectors of the last place may be read beyond it

    def _scale_inputs(self) -> None:
        """Divide the features by their scales, where no layer's matrix does it."""
        scales = self.spec.feature_scales
        if (scales == 1.0).all():
            return
        read = self.frames[-1]
        self.k = -1
        tight = replace(read, length=1, channels=len(scales), pitch=len(scales))
        source = self.copied(tight)
        out = self.allocate_tight((read.length, read.channels), self.margins.get(-1, (0, 0)))
        # The features lie tight: their vectors are scaled as one place.
        place = replace(out, length=1, channels=len(scales), pitch=len(scales))
        scaled = self.allocate((1, len(scales)))
        gains, shifts = self.floats(1.0 / scales), self.floats(np.zeros(len(scales)))
        self.add(ops.SCALE, source, scaled, gain=gains, bias=shifts)
        self.copy(replace(scaled, pitch=len(scales)), place)
        self.frames[-1] = out

    def _lower(self, layer: Layer) -> Frame:
        k = self.k
        match layer:
            case LayerSpec():
                self.is_held = False  # of a held one nothing is read
                read = self.dense(self.read(k))
                self.is_held = True
                out = self.output_frame(self.graph.shapes[k])
                address = self.add_recurrent(k, layer, read)
                pads = out.pitch != out.channels and not self.graph.is_chain
                self.add(ops.RECURRENT, read, out, layer=address, pads=pads)
                return out
            case frame.DenseSpec():
                read = self.dense(self.read(k))
                out = self.output_frame(self.graph.shapes[k])
                weights = columns_of(self.parameters["weight"], read)
                ends = self.activation(layer, layer.size)
                self.product(read, out, weights, self.parameters["bias"], 0, **ends)
                return out
            case frame.ConvSpec():
                return self._lower_conv(layer)
            case memory.TimeConvSpec():
                return self._lower_time_conv(layer)
            case memory.MemorySpec():
                return self._lower_memory(layer)
            case frame.MixSpec():
                return self._lower_mix(layer)
            case frame.PadSpec() | frame.SliceSpec():
                return self._lower_moved(layer)
        read = self.padded_read(k)
        out = self.output_frame(self.graph.shapes[k])
        match layer:
            case frame.ActivationSpec():
                self.add(ops.ACTIVATE, read, out, **self.activation(layer, out.channels))
            case frame.ScaleSpec():
                gain, bias = (self.floats(self.parameters[name]) for name in ("weight", "bias"))
                self.add(ops.SCALE, read, out, gain=gain, bias=bias)
            case frame.NormSpec():
                gain, bias = (self.floats(self.parameters[name]) for name in ("weight", "bias"))
                mask = self.floats(np.ones(out.channels))
                self.add(ops.NORM, read, out, gain=gain, bias=bias, mask=mask, factor=layer.epsilon)
            case frame.MagnitudeSpec():
                half = replace(read, offset=read.offset + out.channels)
                pads = padded(out.channels) != out.channels
                self.beside(self.add(ops.MAGNITUDE, read, out, pads=pads), half)
            case frame.PoolSpec():
                size = layer.size or read.length
                code = ops.MAX_POOL if layer.kind == "max" else ops.MEAN_POOL
                step = 4 * layer.stride * read.pitch
                self.add(code, read, out, window=size, step=step, factor=1.0 / size)
            case _:
                raise ModelError(f"a {type(layer).__name__} is not computed on a CPU")
        return out

    def _lower_head(self) -> Frame:
        """Lower the head: its bias comes first; outputs' scales are in its matrix, if folded."""
        spec = self.spec
        assert spec.head is not None
        read = self.dense(self.frames[len(spec.layers) - 1])
        out = self.allocate((1, spec.output_size))
        biases, weights, nothing = head_matrices(spec, self.all_parameters)
        packed = pack(DENSE, biases, columns_of(weights, read), nothing, self.precision)
        kind = ACTIVATIONS[spec.head.activation]
        num_x = (read.length - 1) * read.pitch + read.channels
        op = self.add(ops.PRODUCT, read, out, num_x=num_x, activation=kind)
        op["pads"] = self.pads(kind, spec.output_size)
        fill_weights(op["weights"][0], packed, self.own)
        return out

    def _scale_outputs(self, read: Frame) -> Frame:
        """Scale the outputs behind a head that layers read at the next step."""
        scales = np.array([item.scale for item in self.spec.outputs])
        if (scales == 1.0).all():
            return read
        out = self.allocate((1, len(scales)))
        gains, shifts = self.floats(scales), self.floats(np.zeros(len(scales)))
        self.add(ops.SCALE, read, out, gain=gains, bias=shifts)
        return out

    def _lower_conv(self, layer: frame.ConvSpec) -> Frame:
        k = self.k
        read, shape = self.read(k), self.graph.shapes[k]
        before, after = layer.padding
        has_margins = self._has_margins(k)
        if (before or after) and not has_margins:
            target = self.allocate_tight((read.length, read.channels), layer.padding)
            self.copy(read, target)
            read = target
        is_depthwise = layer.groups == read.channels == layer.channels > 1
        if not is_depthwise:
            read = self.dense(read, layer.padding)
        weight = self.parameters["weight"].transpose(0, 2, 1)  # [C', kernel, C / groups]
        ends = self.activation(layer, layer.channels)
        if is_depthwise:
            padded_read = read
            if not read.is_padded:
                wide = replace(
                    read,
                    offset=read.offset - before * read.pitch,
                    length=read.length + before + after,
                )
                padded_read = self.copied(wide)
                padded_read = replace(
                    padded_read, offset=padded_read.offset + before * padded_read.pitch
                )
            out = self.output_frame(shape)
            self._depthwise(layer, padded_read, out, weight, ends, before)
            return out
        out = self.output_frame(shape)
        weight = _ungrouped(weight, layer.groups)
        start = replace(read, offset=read.offset - before * read.pitch)
        if layer.dilation > 1:
            self._gathered_conv(layer, start, out, weight, ends)
            return out
        window = replace(read, length=layer.kernel)
        matrix = columns_of(weight.reshape(layer.channels, -1), window)
        step = layer.stride * read.pitch
        self.product(start, out, matrix, self.parameters["bias"], step, **ends)
        return out

    def _has_margins(self, k: int) -> bool:
        """Return whether what layer k reads lies between zeroed margins."""
        reads = self.graph.reads[k]
        if len(reads) != 1 or reads[0].is_before:
            return False
        read = self.frames[reads[0].layer]
        return read.base == ops.SCRATCH

    def _gathered_conv(
        self, layer: frame.ConvSpec, start: Frame, out: Frame, weight: Array, ends: dict[str, Any]
    ) -> None:
        """Copy the taps of every window together: with dilation they lie apart."""
        channels = start.channels
        if out.length * layer.kernel > _MAX_RUNS:
            raise ModelError(
                f"a dilated convolution of kernel {layer.kernel} over {out.length} places would "
                f"copy {out.length * layer.kernel:,} runs; at most {_MAX_RUNS:,} are"
            )
        taps = self.allocate_tight((out.length, layer.kernel * channels))
        runs = [
            (
                4 * (p * layer.stride + j * layer.dilation) * start.pitch,
                4 * (p * layer.kernel + j) * channels,
                4 * channels,
            )
            for p in range(out.length)
            for j in range(layer.kernel)
        ]
        self.copy_runs(start, taps, runs)
        matrix = weight.reshape(layer.channels, -1)
        self.product(taps, out, matrix, self.parameters["bias"], taps.pitch, **ends)

    def _depthwise(
        self,
        layer: frame.ConvSpec,
        read: Frame,
        out: Frame,
        weight: Array,
        ends: dict[str, Any],
        before: int,
    ) -> None:
        start = replace(read, offset=read.offset - before * read.pitch)
        taps = self.floats(weight[:, :, 0].T.reshape(-1), layer.kernel)
        op = self.add(ops.DEPTHWISE, start, out, window=layer.kernel, gain=taps, **ends)
        op["bias"] = self.floats(self.parameters["bias"])
        op["step"] = 4 * layer.stride * read.pitch
        op["in_pitch"] = 4 * layer.dilation * read.pitch

    def _lower_time_conv(self, layer: memory.TimeConvSpec) -> Frame:
        k = self.k
        read = self.read(k)
        if read.length > 1 and read.pitch != read.channels:
            tight = self.allocate_tight((read.length, read.channels))
            self.copy(read, tight)
            read = tight
        size = read.length * read.channels
        flat = replace(read, length=1, channels=size, pitch=size)
        taps = self.allocate_tight((layer.kernel, size))
        op = self.add(ops.TAPS, flat, taps, window=layer.kernel, step=layer.dilation)
        kept = self.layout.kept_offsets.get(k, 0)
        op["other_base"], op["other_offset"] = ops.ROW, kept
        out = self.output_frame(self.graph.shapes[k])
        weight = self.parameters["weight"].transpose(0, 2, 1)
        ends = self.activation(layer, layer.channels)
        if layer.groups == size == layer.channels > 1:
            wide = self.copied(taps)
            spec = frame.ConvSpec(layer.channels, layer.kernel, groups=layer.groups)
            self._depthwise(spec, wide, out, weight, ends, 0)
            return out
        matrix = _ungrouped(weight, layer.groups).reshape(layer.channels, -1)
        whole = replace(taps, length=1, channels=taps.length * size, pitch=taps.length * size)
        self.product(whole, out, matrix, self.parameters["bias"], 0, **ends)
        return out

    def _lower_memory(self, layer: memory.MemorySpec) -> Frame:
        k = self.k
        read, shape = self.read(k), self.graph.shapes[k]
        if read.pitch != read.channels:
            tight = self.allocate_tight((read.length, read.channels))
            self.copy(read, tight)
            read = tight
        out = self.allocate_tight(shape, self.margins.get(k, (0, 0)))
        op = self.add(ops.MEMORY, read, out, window=layer.places, length=read.length)
        op["other_base"], op["other_offset"] = ops.ROW, self.layout.kept_offsets[k]
        return out

    def _lower_moved(self, layer: frame.PadSpec | frame.SliceSpec) -> Frame:
        """Copy places, and of a slice some channels, to where they belong."""
        k = self.k
        read, (length, channels) = self.read(k), self.graph.shapes[k]
        places: list[int]
        first = 0
        if isinstance(layer, frame.SliceSpec):
            places = [layer.places[0] + p for p in range(length)]
            first = layer.channels[0]
        else:
            options = {"constant_values": -1} if layer.mode == "zeros" else {}
            indices = np.arange(read.length)
            moved = np.pad(indices, layer.padding, mode=frame.PADDING_MODES[layer.mode], **options)  # type: ignore[call-overload]
            places = moved.tolist()
        is_tight = channels == read.channels == read.pitch
        margins = self.margins.get(k, (0, 0))
        allocate = self.allocate_tight if is_tight else self.allocate
        out = allocate((length, channels), margins)
        runs = [
            (4 * (place * read.pitch + first), 4 * p * out.pitch, 4 * channels)
            for p, place in enumerate(places)
            if place >= 0
        ]
        self.copy_runs(read, out, _merged(runs))
        return out

    def _lower_mix(self, layer: frame.MixSpec) -> Frame:
        k = self.k
        frames = []
        for read in self.graph.reads[k]:
            each = self.before(read.layer) if read.is_before else self.frames[read.layer]
            frames.append(each if each.is_padded else self.copied(each))
        out = self.output_frame(self.graph.shapes[k])
        # Of a frame with one place this stands for all.
        frames = [replace(each, pitch=0) if each.length < out.length else each for each in frames]
        total = frames[0]
        for index, each in enumerate(frames[1:], 1):
            if layer.is_product:
                op = self.add(ops.MULTIPLY, total, out)
            else:
                first = layer.gains[0] if index == 1 else 1.0
                gains = {"factor": first, "other_factor": layer.gains[index]}
                op = self.add(ops.SUM, total, out, **gains)
            self.beside(op, each)
            total = out
        return out


def _ungrouped(weight: Array, groups: int) -> Array:
    """[C', kernel, C / groups] -> [C', kernel, C], with zeros between the groups."""
    num_rows, kernel, channels = weight.shape
    if weight.size * groups > _MAX_SPREAD:
        raise ModelError(
            f"a convolution of {num_rows} channels in {groups} groups would be computed as a "
            f"matrix of {weight.size * groups:,} numbers; at most {_MAX_SPREAD:,} are"
        )
    full = np.zeros((num_rows, kernel, groups, channels))
    rows = np.arange(num_rows)
    full[rows, :, rows // (num_rows // groups)] = weight
    return full.reshape(num_rows, kernel, groups * channels)


def _merged(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Join runs that lie one behind the other on both sides."""
    merged: list[tuple[int, int, int]] = []
    for source, target, size in runs:
        if merged:
            last_source, last_target, last_size = merged[-1]
            if (last_source + last_size, last_target + last_size) == (source, target):
                merged[-1] = (last_source, last_target, last_size + size)
                continue
        merged.append((source, target, size))
    return merged
