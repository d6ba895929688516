"""NVIDIA Triton on the CPU: the program out of the wheel nvidia-pytriton, without a container.

The model is the Python backend's (`triton_model`) behind the sequence batcher with its strategy
``oldest``. This program lays out the model repository and a directory of backends, and becomes
``tritonserver``; a child process tells when the model is ready.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from streamrnn_bench.peers.servers.process import tell_ready

_MODEL = "lstm"
_READY_PATH = "/inference.GRPCInferenceService/ModelReady"
_NAME_FIELD = b"\x0a"  # of ModelReadyRequest; ModelReadyResponse is `08 01` if it is
_MAX_IDLE_US = 3_600_000_000
_MAX_BATCH = 1024

_CONFIG = """
name: "{model}"
backend: "python"
max_batch_size: {max_batch}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {num_inputs} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {hidden_size} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
sequence_batching {{
  max_sequence_idle_microseconds: {max_idle_us}
  oldest {{ max_candidate_sequences: {max_streams} }}
  control_input [
    {{ name: "START" control [ {{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }} ] }}
  ]
}}
parameters [
  {{ key: "weights" value: {{ string_value: "{weights}" }} }},
  {{ key: "engine" value: {{ string_value: "{engine}" }} }},
  {{ key: "max_streams" value: {{ string_value: "{max_streams}" }} }}
]
"""


def lay_out(directory: Path, wheel: Path, args: argparse.Namespace, sizes: tuple[int, int]) -> None:
    """Write the model repository, and copy the backend with the stub of this Python."""
    model = directory / "models" / _MODEL
    (model / "1").mkdir(parents=True)
    places = [path for path in sys.path if path]
    (model / "1" / "model.py").write_text(
        f"import sys\nsys.path += {places!r}\n"
        "from streamrnn_bench.peers.servers.triton_model import TritonPythonModel\n"
    )
    (model / "config.pbtxt").write_text(
        _CONFIG.format(
            model=_MODEL,
            max_batch=_MAX_BATCH if args.batch else 1,
            num_inputs=sizes[0],
            hidden_size=sizes[1],
            max_idle_us=_MAX_IDLE_US,
            max_streams=args.max_streams,
            weights=args.weights,
            engine=args.engine,
        )
    )
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    backend = directory / "backends" / "python"
    shutil.copytree(wheel / "tritonserver" / "backends" / "python", backend)
    stub = wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise SystemExit(f"nvidia-pytriton has no stub for Python {version}")
    shutil.copy(stub, backend)
    (backend / stub.name).chmod(0o755)


def wait_until_ready(port: int) -> bool:
    """Ask until the model is ready; False if the parent process ends before."""
    import grpc

    parent = os.getppid()
    request = _NAME_FIELD + bytes([len(_MODEL)]) + _MODEL.encode()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        is_ready = channel.unary_unary(_READY_PATH)
        while os.getppid() == parent:
            try:
                if is_ready(request, timeout=2) == b"\x08\x01":
                    return True
            except grpc.RpcError:
                pass
            time.sleep(0.1)
    return False


def main() -> None:
    """Become ``tritonserver``."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--ready-file", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--max-streams", type=int, required=True)
    parser.add_argument("--batch", action="store_true")
    args = parser.parse_args()
    found = find_spec("pytriton")  # not imported: the packages it needs itself are not needed
    if found is None or found.origin is None:
        raise SystemExit("nvidia-pytriton is not installed")
    wheel = Path(found.origin).parent
    directory = Path(args.ready_file).with_suffix(".triton")
    with np.load(args.weights) as file:
        sizes = file["weight_ih"].shape[1], file["weight_hh"].shape[1]
    lay_out(directory, wheel, args, sizes)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if os.fork() == 0:
        if wait_until_ready(port):
            tell_ready(args.ready_file, f"127.0.0.1:{port}")
        os._exit(0)
    program = wheel / "tritonserver" / "bin" / "tritonserver"
    program.chmod(0o755)
    libraries = [wheel.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    # The stub embeds a Python that ignores PYTHONPATH and PYTHONHOME; whose packages it has follows
    # from the python3 that is found first.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    os.execv(
        program,
        [
            str(program),
            f"--model-repository={directory / 'models'}",
            f"--backend-directory={directory / 'backends'}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            "--exit-timeout-secs=2",
            "--disable-auto-complete-config",
        ],
    )


if __name__ == "__main__":
    main()
