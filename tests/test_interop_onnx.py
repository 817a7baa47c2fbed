"""The operator in onnx's reference evaluator: every version and mode against the formula in float64, onnx's own tests,
and a trained network against ONNX Runtime.
"""
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed: the extra 'onnx' has it")

import onnx.backend.base  # noqa: E402
import onnx.inliner  # noqa: E402
from onnx import helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from fastbn.interop import onnx as interop  # noqa: E402
from oracle import steps_of_layer  # noqa: E402

NAMES = ("x", "scale", "B", "mean", "var")
OPSETS = (7, 8, 9, 13, 14, 15, 22)
OF_BATCH = {1: 5, 6: 5, 7: 5, 8: 5, 9: 5, 13: 5, 14: 3, 15: 3, 22: 3}  # the most outputs in training


class BatchNormalization(interop.BatchNormalization):
    """Counts its calls, so that a test knows that it was ours."""
    calls = 0

    def _run(self, *args, **attributes):
        type(self).calls += 1
        return super()._run(*args, **attributes)


@pytest.fixture(autouse=True)
def fresh_count(monkeypatch):
    monkeypatch.setattr(BatchNormalization, "calls", 0)


def evaluator(model):
    return ReferenceEvaluator(model, new_ops=[BatchNormalization])


def node_of(outputs, **attributes):
    return helper.make_node("BatchNormalization", NAMES, outputs, name="bn", **attributes)


def model_of(nodes, outputs, opset, inputs=NAMES, **more):
    def untyped(names):
        return [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names if name]
    graph = helper.make_graph(nodes, "graph", untyped(inputs), untyped(outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **more)


def run(arrays, outputs, opset, **attributes):
    """The results of a model of one node, each of which must be ours."""
    model = model_of([node_of(outputs, **attributes)], outputs, opset)
    results = evaluator(model).run([name for name in outputs if name], dict(zip(NAMES, arrays, strict=True)))
    assert BatchNormalization.calls == 1
    return results


def draw(rng, shape, features, dtypes=(np.float32,) * 3):
    """x, scale, B, mean, var."""
    x, parameters, statistics = dtypes
    return [rng.normal(2, 3, shape).astype(x), rng.normal(1, 0.2, features).astype(parameters),
            rng.normal(size=features).astype(parameters), rng.normal(size=features).astype(statistics),
            rng.uniform(0.5, 2, features).astype(statistics)]


def expected(arrays, axes, training, momentum=0.9, epsilon=1e-5):
    """Y, running mean, running var, batch mean, batch var in float64. A node's attributes are float32."""
    momentum, epsilon = float(np.float32(momentum)), float(np.float32(epsilon))
    x, scale, bias, mean, var = (a.astype(np.float64) for a in arrays)
    def wide(a):
        return a.reshape(tuple(1 if axis in axes else x.shape[axis] for axis in range(x.ndim)))
    batch = (x.mean(axes), x.var(axes)) if training else (mean, var)
    y = (x - wide(batch[0])) / np.sqrt(wide(batch[1]) + epsilon) * wide(scale) + wide(bias)
    averaged = [momentum * old + (1 - momentum) * new for old, new in zip((mean, var), batch)]
    return [y, *averaged, *batch]


def assert_close(results, wanted, rtol=2e-6):
    for index, (result, right) in enumerate(zip(results, wanted)):
        scale = np.max(np.abs(right), initial=1e-30)
        assert result.shape == right.shape, index
        assert np.max(np.abs(result.astype(np.float64) - right), initial=0) <= rtol * scale, index


# Versions and modes

@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("opset", OPSETS)
def test_inference(opset, shape, rng):
    arrays = draw(rng, shape, 3)
    results = run(arrays, ["y"], opset, epsilon=1e-3)
    assert_close(results, expected(arrays, (0, *range(2, len(shape))), False, epsilon=1e-3)[:1])
    assert results[0].dtype == np.float32


@pytest.mark.parametrize("opset", OF_BATCH)
def test_training(opset, rng):
    arrays, mode = draw(rng, (4, 3, 5, 2), 3), {"training_mode": 1} if opset >= 14 else {}
    mode |= {"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {}
    wanted = expected(arrays, (0, 2, 3), True, momentum=0.7)
    for count in range(1 if opset >= 14 else 2, OF_BATCH[opset] + 1):
        BatchNormalization.calls = 0
        results = run(arrays, ["y", "m", "v", "sm", "sv"][:count], opset, momentum=0.7, **mode)
        assert len(results) == count
        assert_close(results, wanted)


def test_the_defaults_are_those_of_the_standard(rng):
    arrays = draw(rng, (8, 3), 3)
    arrays[4][:] = 1e-5  # so that epsilon counts
    assert_close(run(arrays, ["y", "m", "v"], 15, training_mode=1), expected(arrays, (0,), True))
    BatchNormalization.calls = 0
    assert_close(run(arrays, ["y"], 15), expected(arrays, (0,), False)[:1])


@pytest.mark.parametrize("opset", [1, 6])
def test_inference_before_opset_7(opset, rng):
    arrays = draw(rng, (4, 3, 5, 2), 3)
    more = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {}
    assert_close(run(arrays, ["y"], opset, is_test=1, **more), expected(arrays, (0, 2, 3), False)[:1])


@pytest.mark.parametrize("outputs", [["y"], ["y", "m", "v", "sm", "sv"]])
@pytest.mark.parametrize("opset", [6, 7, 8])
def test_statistics_of_each_activation(opset, outputs, rng):
    arrays = draw(rng, (9, 3, 4, 5), (3, 4, 5))
    training = len(outputs) > 1
    mode = {"is_test": int(not training)} if opset == 6 else {}
    assert_close(run(arrays, outputs, opset, spatial=0, **mode), expected(arrays, (0,), training))


def test_outputs_without_a_name_are_left_out(rng):
    arrays = draw(rng, (8, 3), 3)
    y, var = run(arrays, ["y", "", "v"], 9)
    assert_close([y, var], [expected(arrays, (0,), True)[index] for index in (0, 2)])
    BatchNormalization.calls = 0
    assert_close(run(arrays, ["y", "", ""], 9), expected(arrays, (0,), False)[:1])


@pytest.mark.parametrize("training", [False, True])
def test_an_input_of_one_dimension_has_one_feature(training, rng):
    arrays = draw(rng, 7, 1)
    results = run(arrays, ["y", "m", "v"] if training else ["y"], 15, training_mode=int(training))
    assert_close(results, expected(arrays, (0,), training))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("training", [False, True])
def test_types_of_data_may_differ_from_those_of_parameters(name, training, rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    outputs = ["y", "m", "v"] if training else ["y"]
    for statistics in (x, np.dtype(np.float32), np.dtype(np.float64)):
        for parameters in (x, np.dtype(np.float32), np.dtype(np.float16)):
            BatchNormalization.calls = 0
            arrays = draw(rng, (6, 3, 4), 3, (x, parameters, statistics))
            results = run(arrays, outputs, 15, training_mode=int(training))
            wanted = expected(arrays, (0, 2), training)
            for result, right, dtype in zip(results, wanted, (x, statistics, statistics)):
                assert result.dtype == dtype
                least = 1e-9 if x == np.float64 else 2e-6  # by the type of the arithmetic
                assert_close([result], [right], max(least, {2: 2.0**-8, 4: 2e-6, 8: 1e-9}[dtype.itemsize]))


def test_statistics_of_large_half_numbers_do_not_overflow(rng):
    arrays = draw(rng, (64, 3), 3, (np.float16, np.float16, np.float32))
    arrays[0] = rng.choice(np.array([-60000, 60000], np.float16), (64, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = run(arrays, ["y", "m", "v"], 15, training_mode=1)
    assert_close(results, expected(arrays, (0,), True), 2e-3)


def test_epsilon_may_be_0(rng):
    arrays = draw(rng, (8, 3), 3)
    arrays[4][:] = 1e-8
    assert_close(run(arrays, ["y"], 15, epsilon=0.0), expected(arrays, (0,), False, epsilon=0)[:1])


def test_views_are_read_where_they_lie(rng):
    arrays = draw(rng, (2, 4, 5, 3), 3)
    arrays[0] = arrays[0].transpose(0, 3, 1, 2)[:, :, ::-1]
    arrays[1:] = [np.repeat(a, 2)[::2] for a in arrays[1:]]
    assert_close(run(arrays, ["y", "m", "v"], 15, training_mode=1), expected(arrays, (0, 2, 3), True))


def test_inputs_stay_what_they_were(rng):
    arrays = draw(rng, (8, 3), 3)
    before = [a.copy() for a in arrays]
    run(arrays, ["y", "m", "v"], 15, training_mode=1)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))


def test_without_entries_the_running_statistics_stay(rng):
    arrays = draw(rng, (0, 3), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, mean, var = run(arrays, ["y", "m", "v"], 15, training_mode=1)
    assert y.shape == (0, 3) and np.array_equal(mean, arrays[3]) and np.array_equal(var, arrays[4])
    assert mean is not arrays[3]


# Subgraphs and functions

def test_in_a_branch(rng):
    arrays = draw(rng, (8, 3), 3)
    branch = helper.make_graph([node_of(["y"])], "branch", [], [helper.make_empty_tensor_value_info("y")])
    node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    feeds = dict(zip(NAMES, arrays)) | {"c": np.array(True)}
    results = evaluator(model_of([node], ["z"], 11, (*NAMES, "c"))).run(None, feeds)
    assert BatchNormalization.calls == 1
    assert_close(results, expected(arrays, (0,), False)[:1])


def test_functions_are_to_be_inlined(rng):
    """Where this fails the evaluator has learnt to hand new_ops to functions, and the docstring is to say so."""
    arrays = draw(rng, (8, 3), 3)
    function = helper.make_function("own", "Norm", NAMES, ["y"], [node_of(["y"])], [helper.make_opsetid("", 15)])
    model = model_of([helper.make_node("Norm", NAMES, ["y"], domain="own")], ["y"], 15, functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    feeds = dict(zip(NAMES, arrays))
    evaluator(model).run(None, feeds)
    assert BatchNormalization.calls == 0
    results = evaluator(onnx.inliner.inline_local_functions(model)).run(None, feeds)
    assert BatchNormalization.calls == 1
    assert_close(results, expected(arrays, (0,), False)[:1])


# Errors

@pytest.mark.parametrize("outputs, opset, attributes, message", [
    (["y", "m", "v"], 15, {}, "'bn' has 3 outputs and training_mode=0, expected Y alone"),
    (["y", "m"], 6, {"is_test": 1}, "'bn' has 2 outputs and is_test=1, expected Y alone"),
    (["y"], 6, {}, "has is_test=0 .is it missing.*set is_test=1 for inference"),
    (["y"], 15, {"epsilon": -1e-3}, "eps is -0.001"),
    (["y"], 8, {"spatial": 0}, r"scale has shape \(3,\), expected \(3, 4\), the feature axes of X"),
])
def test_errors_name_what_is_wrong(outputs, opset, attributes, message, rng):
    with pytest.raises(ValueError, match=message):
        run(draw(rng, (2, 3, 4), 3), outputs, opset, **attributes)


@pytest.mark.parametrize("index", range(1, 5))
def test_parameters_of_another_shape(index, rng):
    arrays = draw(rng, (8, 3), 3)
    arrays[index] = arrays[index][:2]
    with pytest.raises(ValueError, match=rf"{NAMES[index]} has shape \(2,\), expected \(3,\)"):
        run(arrays, ["y"], 15)


def test_integers_are_refused(rng):
    arrays = draw(rng, (8, 3), 3)
    arrays[0] = arrays[0].astype(np.int64)
    with pytest.raises(TypeError) as raised:
        run(arrays, ["y"], 15)
    assert "x has dtype int64" in str(raised.value.__cause__)


def test_a_version_to_come_is_refused(monkeypatch):
    monkeypatch.setattr(interop, "_VERSIONS", (1, 6, 7, 9, 14))
    with pytest.raises(ValueError, match="opset 15 is version 15 of the operator.*is there a newer fastbn"):
        evaluator(model_of([node_of(["y"])], ["y"], 15))


def test_without_onnx_the_remedy_is_named():
    code = ("import sys; sys.modules['onnx'] = None\n"
            "import fastbn\n"
            "try:\n    import fastbn.interop.onnx\nexcept ImportError as error:\n    print(error)")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "fastbn.interop.onnx needs the package onnx: pip install 'fastbn[onnx]'\n"


# onnx's own tests

class Backend(onnx.backend.base.Backend):
    @classmethod
    def prepare(cls, model, device="CPU", **options):
        session = evaluator(model)
        stored = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in stored]
        class Prepared(onnx.backend.base.BackendRep):
            def run(self, inputs, **options):
                return session.run(None, dict(zip(names, inputs, strict=True)))
        return Prepared()

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"


@pytest.fixture(scope="module")
def backend_tests(tmp_path_factory):
    """{name: function} of all of onnx's tests. The light models keep their data in a folder that a variable names."""
    from onnx.backend.test import BackendTest
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("ONNX_MODELS", str(tmp_path_factory.mktemp("models")))
        warnings.simplefilter("ignore", RuntimeWarning)
        classes = BackendTest(Backend, __name__).test_cases.values()
        yield {name: getattr(cls(name), name) for cls in classes for name in dir(cls) if name.endswith("_cpu")}


@pytest.mark.full
@pytest.mark.parametrize("pattern, tests, calls", [
    ("test_batchnorm_", 4, 4), ("test_BatchNorm[123]d", 5, 5), ("test_densenet121_", 1, 121),
    ("test_inception_v2_", 1, 69), ("test_resnet50_", 1, 53), ("test_shufflenet_", 1, 49)])
def test_tests_of_onnx(pattern, tests, calls, backend_tests):
    found = [function for name, function in backend_tests.items() if re.match(pattern, name)]
    for function in found:
        function()
    assert len(found) >= tests and BatchNormalization.calls >= calls


# A trained network

@pytest.fixture(scope="module")
def network():
    """A classifier of the direction of text, with its batch norms unfolded: nothing of its package is imported."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None:
        pytest.skip("rapidocr-onnxruntime is not installed: pip install --no-deps rapidocr-onnxruntime==1.4.4")
    path = Path(spec.submodule_search_locations[0], "models", "ch_ppocr_mobile_v2.0_cls_infer.onnx")
    if not path.exists():
        pytest.skip(f"{path.name} is not in this version of rapidocr-onnxruntime: 1.4.4 has it")
    return onnx.load(path)


def test_a_trained_network_agrees_with_onnx_runtime(network, rng):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra 'peers' has it")
    nodes = [node for node in network.graph.node if node.op_type == "BatchNormalization"]
    assert len(nodes) == 35 and network.opset_import[0].version == 11
    model = onnx.ModelProto()
    model.CopyFrom(network)
    model.graph.output.extend(helper.make_empty_tensor_value_info(node.output[0]) for node in nodes)
    feeds = {network.graph.input[0].name: rng.uniform(-1, 1, (2, 3, 48, 192)).astype(np.float32)}
    names = [value.name for value in model.graph.output]
    ours = evaluator(model).run(names, feeds)
    assert BatchNormalization.calls == 35
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    theirs = runtime.InferenceSession(model.SerializeToString(), options).run(names, feeds)
    assert np.max(np.abs(ours[0] - theirs[0])) <= 1e-6  # probabilities
    assert_close(ours, [a.astype(np.float64) for a in theirs], 1e-5)  # after each batch norm, with what came before


def test_steps_have_the_bits_of_the_layers(rng):
    batches, model = [draw(rng, (7, 5, 3), 5)[0] for _ in range(3)], model_of([node_of(["y", "m", "v"], training_mode=1)],
                                                                               ["y", "m", "v"], 15)
    mean, var = np.zeros(5, np.float32), np.ones(5, np.float32)
    for x in batches:
        arrays = x, np.ones(5, np.float32), np.zeros(5, np.float32), mean, var
        _, mean, var = evaluator(model).run(["y", "m", "v"], dict(zip(NAMES, arrays, strict=True)))
    momentum = float(np.float32(0.9))  # as an attribute has it
    for found, expected in zip((mean, var), steps_of_layer(batches, ddof=0, momentum=momentum)):
        np.testing.assert_array_equal(found, expected)
