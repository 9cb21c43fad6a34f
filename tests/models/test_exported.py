"""Networks in ONNX files and in files of torch.export: what they answer, what they take, and what is refused.

ONNX files are written as graphs by hand: that is cheap. One is exported by torch, with its weights in a file beside it.
"""

import copy
import os
import pickle
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError, MissingExtraError, NotFoundError, RunError
from tutelage.models import create, fingerprint, names
from tutelage.models.sources import onnx as onnx_source

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.rand(5, 16, generator=GENERATOR)
IMAGES = torch.rand(7, 1, 4, 4, generator=GENERATOR)


def expected(images=IMAGES, weight=WEIGHT):
    return images.flatten(1) @ weight.T


def write(
    path,
    *,
    shape=("batch", 1, 4, 4),
    answer=("batch", 5),
    dtype=FLOAT,
    weight=WEIGHT,
    nodes=(),
    outputs=(),
    inputs=(),
    opset=17,
    **saved,
):
    """Write a linear layer of flattened images as an ONNX file, with further nodes, outputs and inputs."""
    info = helper.make_tensor_value_info
    made = [
        helper.make_node("Cast", ["image"], ["pixels"], to=FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
        *nodes,
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [info("image", dtype, shape), *(info(name, FLOAT, (1,)) for name in inputs)],
        [info("logits", FLOAT, answer), *(info(*each) for each in outputs)],
        [numpy_helper.from_array(weight.numpy(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save_model(model, path, **saved)
    return f"onnx:{path}"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A file of torch.export with an open batch, and the network in it, which returns two tensors by name."""
    path = tmp_path_factory.mktemp("export") / "net.pt2"
    network = Net().eval()
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (IMAGES,), dynamic_shapes={"images": {0: batch}}), path)
    return path, network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.norm, self.drop, self.head = nn.BatchNorm2d(3), nn.Dropout(), nn.Linear(27, 5)

    def forward(self, images):
        features = self.drop(self.norm(self.conv(images)).relu().flatten(1))
        return {"features": features, "logits": self.head(features) + torch.arange(5, device=images.device)}


class TestAnswers:
    def test_an_onnx_file_gives_the_network_s_logits(self, tmp_path):
        model = create(write(tmp_path / "net.onnx"))
        torch.testing.assert_close(model(IMAGES), expected(), rtol=1e-5, atol=1e-5)
        assert (model.card.classes, model.card.channels, model.card.image_size) == (5, 1, (4, 4))
        assert model.card.weights == "net.onnx"
        assert model.card.mean is None

    def test_a_file_of_torch_export_gives_the_network_s_logits(self, program):
        path, network = program
        model = create(f"export:{path}", output="logits", trust_code=True)
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), network(IMAGES)["logits"], rtol=1e-5, atol=1e-5)
        assert (model.card.classes, model.card.image_size) == (5, (4, 4))
        assert not model(IMAGES).requires_grad

    def test_a_file_gives_no_pixels_classes(self, tmp_path):
        with refused(InvalidValueError, "model", suggests="file:path.py:function"):
            create(write(tmp_path / "net.onnx"), task="pixels")

    @pytest.mark.parametrize("size", [1, 3, 32])
    def test_a_file_for_one_size_of_batches_takes_any(self, tmp_path, size):
        model = create(write(tmp_path / "net.onnx", shape=(size, 1, 4, 4), answer=(size, 5)))
        for samples in (0, 1, 3, 7):
            torch.testing.assert_close(model(IMAGES[:samples]), expected(IMAGES[:samples]))

    def test_a_program_for_a_range_of_batches_takes_any(self, tmp_path):
        batch = torch.export.Dim("batch", min=3, max=4)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        saved = torch.export.export(network, (IMAGES[:4],), dynamic_shapes={"input": {0: batch}})
        torch.export.save(saved, tmp_path / "net.pt2")
        model = create(f"export:{tmp_path / 'net.pt2'}", trust_code=True)
        torch.testing.assert_close(model(IMAGES), network(IMAGES).detach())  # of 4 and 3
        torch.testing.assert_close(model(IMAGES[:5]), network(IMAGES[:5]).detach())  # of 4 and 1

    @pytest.mark.parametrize(("dtype", "tolerance"), [(HALF, 1e-2), (DOUBLE, 1e-5), (FLOAT, 1e-5)])
    def test_inputs_are_given_as_the_file_has_them(self, tmp_path, dtype, tolerance):
        model = create(write(tmp_path / "net.onnx", dtype=dtype))
        torch.testing.assert_close(model(IMAGES), expected(), rtol=tolerance, atol=tolerance)
        assert model(IMAGES.double()).dtype == torch.float64  # where a run computes so
        assert model(IMAGES.bfloat16()).dtype == torch.float32

    def test_whole_numbers_are_0_to_255(self, tmp_path):
        model = create(write(tmp_path / "net.onnx", dtype=TensorProto.UINT8))
        torch.testing.assert_close(model(IMAGES), expected((IMAGES * 255).round()))
        with refused(InvalidValueError, "mean", suggests="out"):
            create(write(tmp_path / "net.onnx", dtype=TensorProto.UINT8), mean=(0.5,), std=(0.5,))

    def test_it_is_computed_in_its_own_precision(self, program):
        model = create(f"export:{program[0]}", output=1, trust_code=True)
        logits = model(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(IMAGES), logits)
        assert torch.equal(model.double()(IMAGES), logits)
        assert model.to(memory_format=torch.channels_last)(IMAGES).dtype == torch.float32

    def test_it_has_the_mode_of_its_export(self, program):
        model = create(f"export:{program[0]}", output=1, trust_code=True)
        logits = model.eval()(IMAGES)
        assert torch.equal(model.train()(IMAGES), logits)  # neither dropout nor batch norm
        assert torch.equal(copy.deepcopy(model)(IMAGES), logits)

    def test_what_a_program_makes_itself_is_made_where_it_is(self, program):
        model = create(f"export:{program[0]}", output=1, trust_code=True).to("meta")
        assert model.network.call(IMAGES.to("meta"), 1).is_meta

    def test_statistics_are_typed(self, tmp_path):
        model = create(write(tmp_path / "net.onnx"), mean=(0.5,), std=(0.25,))
        torch.testing.assert_close(model(IMAGES), expected((IMAGES - 0.5) / 0.25), rtol=1e-5, atol=1e-5)
        assert model.card.mean == (0.5,)

    def test_it_predicts(self, tmp_path):
        pixels = (IMAGES[0, 0].numpy() * 255).astype(np.uint8)
        (prediction,) = create(write(tmp_path / "net.onnx")).predict([pixels])
        assert prediction.label == expected(torch.from_numpy(pixels)[None, None] / 255).argmax()

    def test_open_axes_are_as_requested(self, tmp_path):
        keep = numpy_helper.from_array(np.array([True, False, True, True, False]))
        nodes = [
            helper.make_node("Constant", [], ["keep"], value=keep),
            helper.make_node("Compress", ["logits", "keep"], ["some"], axis=1),
        ]
        some = [("some", FLOAT, (None, None))]
        name = write(tmp_path / "net.onnx", shape=("n", "c", "h", "w"), nodes=nodes, outputs=some)
        model = create(name, channels=1, image_size=(4, 4), output="some")
        assert (model.card.classes, model.card.channels, model.card.image_size) == (3, 1, (4, 4))
        torch.testing.assert_close(model(IMAGES), expected()[:, [0, 2, 3]])
        with refused(InvalidValueError, "output", suggests="image_size=(224, 224)"):
            create(name, output="some")

    def test_threads_are_those_of_torch(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        session = create(write(tmp_path / "net.onnx")).network.call.session
        assert session.get_session_options().intra_op_num_threads == 3


class TestFingerprint:
    def test_it_is_the_file_s(self, tmp_path):
        first = create(write(tmp_path / "first.onnx"))
        other = create(write(tmp_path / "other.onnx", weight=WEIGHT + 1))
        assert fingerprint(first) != fingerprint(other)
        assert fingerprint(create(write(tmp_path / "copy.onnx"))) == fingerprint(first)

    def test_it_tells_two_outputs_of_a_file_apart(self, tmp_path):
        name = write(tmp_path / "net.onnx", **TWO)
        assert fingerprint(create(name, output="logits")) != fingerprint(create(name, output="shares"))

    def test_it_covers_weights_in_files_beside_it(self, tmp_path):
        beside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        name = write(tmp_path / "net.onnx", **beside)
        before = create(name)
        torch.testing.assert_close(before(IMAGES), expected())
        (tmp_path / "weights.bin").write_bytes((WEIGHT * 2).numpy().tobytes())
        after = create(name)
        torch.testing.assert_close(after(IMAGES), 2 * expected())
        assert fingerprint(before) != fingerprint(after)

    def test_files_are_found_wherever_a_tensor_may_be(self):
        def tensor(location):
            made = numpy_helper.from_array(np.zeros(2, np.float32), location)
            onnx.external_data_helper.set_external_data(made, location)
            return made

        inner = helper.make_graph([], "inner", [], [], [tensor("a")])
        constant = helper.make_node("Constant", [], ["c"], value=tensor("b"))
        branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        sparse = helper.make_sparse_tensor(tensor("d"), tensor("e"), [4])
        function = helper.make_function("own", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)])
        graph = helper.make_graph([branch], "outer", [], [], [tensor("f" * 300)], sparse_initializer=[sparse])
        model = helper.make_model(graph, functions=[function])
        assert onnx_source._locations(model) == {"a", "b", "d", "e", "f" * 300}

    @pytest.mark.slow
    def test_what_torch_exports_with_its_weights_beside_it(self, tmp_path):
        network = Net().eval()
        path = tmp_path / "net.onnx"
        torch.onnx.export(network, (IMAGES,), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
        assert (tmp_path / "net.onnx.data").exists()
        model = create(f"onnx:{path}", output=1)
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), network(IMAGES)["logits"], rtol=1e-5, atol=1e-5)


TWO = {"nodes": [helper.make_node("Softmax", ["logits"], ["shares"])], "outputs": [("shares", FLOAT, ("batch", 5))]}
LABELS = {
    "nodes": [helper.make_node("ArgMax", ["logits"], ["labels"])],
    "outputs": [("labels", TensorProto.INT64, ("batch", 1))],
}
SCALED = {"nodes": [helper.make_node("Mul", ["logits", "scale"], ["more"])], "inputs": ["scale"]}
WRONG = {
    "two outputs": ({**TWO}, {}, "output", "'logits'", "output"),
    "an output that is not there": ({**TWO}, {"output": "probabilities"}, "output", "probabilities", "number"),
    "a number that is not there": ({**TWO}, {"output": 2}, "output", 2, "number"),
    "labels": ({**LABELS}, {"output": "labels"}, "output", "int64", "argmax"),
    "two inputs": ({**SCALED}, {}, "model", "image, scale", "fixed"),
    "channels last": ({"shape": ("n", 4, 4, 1)}, {}, "model", "last", "--inputs-as-nchw"),
    "no images": ({"shape": ("n", 16)}, {}, "model", "(open, 16)", "input"),
    "whole numbers": ({"dtype": TensorProto.INT64}, {}, "model", "int64", "float32"),
    "bfloat16": ({"dtype": TensorProto.BFLOAT16}, {}, "model", "bfloat16", "float32"),
    "another size": ({}, {"image_size": (8, 8)}, "image_size", "(8, 8)", "open"),
    "statistics of other channels": ({}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "mean", 3, "many"),
    "weights": ({}, {"weights": "other.safetensors"}, "weights", "some", "out"),
    "another number of classes": ({}, {"classes": 4}, "classes", 4, 5),
    "an opset of the future": ({"opset": 99}, {}, "model", "Opset", "opset"),
}


class TestRefused:
    @pytest.mark.parametrize("case", WRONG)
    def test_what_is_no_network_of_images(self, tmp_path, case):
        graph, arguments, what, got, suggests = WRONG[case]
        name = write(tmp_path / "net.onnx", **graph)
        with refused(InvalidValueError, what, got=got, suggests=suggests):
            create(name, **arguments)

    @pytest.mark.parametrize("content", [b"", b"no model at all", "torn"])
    @pytest.mark.parametrize("prefix", ["onnx", "export"])
    def test_what_is_no_whole_file(self, tmp_path, program, prefix, content, capfd):
        path = tmp_path / "net"
        write(path)
        whole = path.read_bytes() if prefix == "onnx" else program[0].read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4] if content == "torn" else content)
        with refused(InvalidValueError, "model", got=f"{path.stat().st_size} bytes", suggests="export it"):
            create(f"{prefix}:{path}", trust_code=True)
        assert capfd.readouterr() == ("", "")

    def test_a_file_beside_it_that_is_gone(self, tmp_path):
        beside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        name = write(tmp_path / "net.onnx", **beside)
        (tmp_path / "weights.bin").unlink()
        with refused(InvalidValueError, "model", suggests="beside"):
            create(name)

    @pytest.mark.parametrize("prefix", ["onnx", "export"])
    def test_what_is_not_there(self, tmp_path, prefix):
        for path, got in ((tmp_path, "folder"), (tmp_path / "no.onnx", "not there")):
            with refused(NotFoundError, "model", got=got) as early:
                names.check(f"{prefix}:{path}", trust_code=True)
            with refused(NotFoundError, "model") as late:
                create(f"{prefix}:{path}", trust_code=True)
            assert str(early.value) == str(late.value)

    def test_a_library_that_is_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with refused(MissingExtraError, "model", suggests="'tutelage[onnx]'"):
            create(write(tmp_path / "net.onnx"))

    def test_an_answer_of_another_shape(self, tmp_path):
        """An axis that the file does not say may be anything: here the batch is lost."""
        mean = helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0], keepdims=1)
        name = write(tmp_path / "net.onnx", nodes=[mean], outputs=[("mean", FLOAT, (None, 5))])
        model = create(name, output="mean")
        with refused(RunError, got="(1, 5)", suggests="dynamic_shapes"):
            model(IMAGES)

    def test_images_of_another_size_come_from_no_warning(self, tmp_path):
        model = create(write(tmp_path / "net.onnx"))
        with pytest.raises(Exception, match="Expected: 4"):
            model(torch.rand(2, 1, 8, 8))

    def test_statistics_and_outputs_of_what_has_its_own(self, tmp_path):
        with refused(InvalidValueError, "mean", suggests="out"):
            create("cifar:resnet8", mean=(0.5,) * 3, std=(0.5,) * 3)
        with refused(InvalidValueError, "output", got="cifar:resnet8"):
            create("cifar:resnet8", output=1)


class Payload:
    """What unpickles by calling a function: here a harmless one, that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_reading_a_file_of_torch_export_may_run_code_so_it_is_trusted_first(program, tmp_path):
    """torch.export.load unpickles what a file says are its example inputs."""
    path, trace = tmp_path / "net.pt2", tmp_path / "trace"
    with zipfile.ZipFile(program[0]) as whole, zipfile.ZipFile(path, "w") as forged:
        for entry in whole.namelist():
            payload = pickle.dumps(Payload(str(trace))) if entry.endswith("sample_inputs/model.pt") else None
            forged.writestr(entry, payload or whole.read(entry))
    for trust in (False, frozenset([f"export:{program[0]}"])):
        with refused(InvalidValueError, "model", got="none", suggests="--trust-code"):
            create(f"export:{path}", trust_code=trust)
        with refused(InvalidValueError, "model", got="none", suggests="--trust-code"):
            names.check(f"export:{path}", trust_code=trust)
    assert not trace.exists()
    with refused(InvalidValueError, "model", suggests="fetch it again"):
        create(f"export:{path}", trust_code=frozenset([f"export:{path}"]))
    assert trace.exists()  # which is why
