"""Converts functions to LiteRT models. `export.litert_converter` runs this file by itself.

    python -I -S litert_process.py PACKAGES WORK

WORK holds `requests.json`, a list, and a file `NUMBER.mlirbc` for each. It receives a file
`NUMBER.tflite` for each. This file uses the packages in PACKAGES and the standard library only.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

# The number of images becomes 1 first. A model with a symbolic number computes its sizes when it
# runs, and is three times slower.
PIPELINE = (
    "builtin.module(inline,symbol-dce,stablehlo-refine-arguments{{types=tensor<1x{shape}xf32>}},"
    "stablehlo-refine-shapes,func.func(stablehlo-canonicalize-dynamism),canonicalize)"
)


def converted(function: bytes, image_shape: list[int]) -> bytes:
    """Returns the model, with the input `images` (1, H, W, C) and the output `logits` (1, K)."""
    from litert_converter import converter_api_ext
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir.dialects import stablehlo

    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    with context:
        module = stablehlo.deserialize_portable_artifact(context, function)
        pipeline = PIPELINE.format(shape="x".join(map(str, image_shape)))
        passmanager.PassManager.parse(pipeline).run(module.operation)
        if "tensor<?" in str(module):
            raise ValueError("a size in the network is not known before it runs")
        converter_api_ext.set_signature(module.operation, "serving_default", ["images"], ["logits"])
        config = converter_api_ext.ConvertToTFLConfig()
        config.strict_qdq_mode = True  # rounding is as `export.litert_marks` says, and nowhere else
        converter_api_ext.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        # The file format has these operations, but runtimes do not.
        if left := re.search(r"stablehlo\.(?!return)\w+", str(module)):
            raise ValueError(f"LiteRT has no counterpart of {left[0]}")
        return bytes(converter_api_ext.export_flatbuffer_to_bytes(module.operation))


def with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """Returns the model with an entry `irp_jax` in its metadata: a JSON object."""
    import flatbuffers
    from litert_converter import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(json.dumps(metadata).encode())
    entry.name, entry.buffer = "irp_jax", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def main() -> None:
    packages, work = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, packages)
    for number, request in enumerate(json.loads((work / "requests.json").read_text())):
        content = converted((work / f"{number}.mlirbc").read_bytes(), request["image_shape"])
        (work / f"{number}.tflite").write_bytes(with_metadata(content, request["metadata"]))


if __name__ == "__main__":
    main()
