"""What is read from an ONNX file before onnxruntime sees it: where its weights lie and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snellen.errors import InvalidInput, UntrustedFile

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def read_graph(path: Path) -> ModelProto:
    """The file's protocol buffer, without weights that lie beside it. Raises InvalidInput for a damaged file."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InvalidInput(f"{path.name} needs onnxruntime; pip install snellen[onnx]") from error
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise InvalidInput(f"{path.name} is damaged or no ONNX file: {reason(error)}") from error


def external_files(model: ModelProto, path: Path) -> set[Path]:
    """Weight files beside the graph. Raises UntrustedFile for one outside the graph's folder, links followed.

    onnxruntime checks that too, but only in its newer versions.
    """
    folder = path.parent.resolve()
    found = set()
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            target = folder / entry.value
            if ".." in Path(entry.value).parts or not target.resolve().is_relative_to(folder):
                raise UntrustedFile(f"{path.name} reads weights from {entry.value!r}, outside its folder; not loaded")
            if not target.is_file():
                raise InvalidInput(f"{path.name} keeps weights in {entry.value!r}, which is not beside it; add it")
            found.add(target)
    return found


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Sequence[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def ends_in_softmax(graph: GraphProto, output: str) -> bool:
    """Whether the named output comes out of a softmax."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def reason(error: Exception) -> str:
    """The last part of onnxruntime's "[ONNXRuntimeError] : 1 : FAIL : reason", on one line."""
    text = str(error).rpartition(" : ")[2] if "[ONNXRuntimeError]" in str(error) else str(error)
    return " ".join(text.split())[:300] or type(error).__name__
