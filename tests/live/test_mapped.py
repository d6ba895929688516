"""A stream that begins with the parts of another model's state keeps none of its inputs."""

from __future__ import annotations

import dataclasses

import numpy as np

from streamrnn.kernels.cpu.program import Program
from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.transfer import record_of_row
from streamrnn_client.protocol import OpenWithStateRequest
from streamrnn_server.control.messages import Caller
from streamrnn_server.control.methods.state import StateMethods
from streamrnn_server.live.table import ModelTable
from streamrnn_server.storage.record_lookup import RecordLookup
from tests.support.models import model_with_name


def test_inputs_of_another_model_are_not_kept(rng):
    models = {name: model_with_name(rng, "lstm", 6, "state") for name in ("encoder", "decoder")}
    programs = {name: Program(model) for name, model in models.items()}
    arithmetic = programs["encoder"].arithmetic
    table = ModelTable(models, programs, dict.fromkeys(models, arithmetic), 2, lambda name: 4)
    methods = StateMethods(RecordLookup(table.served, None, None), table, 1, False, 1)
    row = np.array(programs["encoder"].initial_row, np.float32)
    record = decode_record(record_of_row(models["encoder"], arithmetic, "a", row))
    data = encode_record(dataclasses.replace(record, inputs=bytes(16)))
    call = OpenWithStateRequest("b", "decoder", 4, data)
    [order] = methods.open_with_state(Caller(0, b"peer", 1, ""), call)
    sent = b"".join(map(bytes, order.frames))
    at = sent.index(b"SRNN")
    num_bytes = int.from_bytes(sent[at + 8 : at + 16], "little")
    assert decode_record(sent[at : at + num_bytes]).inputs == b""
