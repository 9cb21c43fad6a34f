import pytest
import safetensors.torch
import torch
from torch import nn

from tutelage.models import create, save
from tutelage.tensor_files import size_of, to_bytes
from tutelage.training.checkpoints import Checkpoints

complex_values = torch.randn(3, dtype=torch.complex64)
TENSORS = {
    "channels-last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "channels-last-1x1": torch.randn(5, 3, 1, 1).to(memory_format=torch.channels_last),
    "transposed": torch.randn(2, 3).t(),
    "expanded": torch.randn(1, 3).expand(4, 3),
    "part": torch.randn(6)[2:4],
    "every other": torch.randn(6)[::2],
    "bf16": torch.randn(3, 2).bfloat16().t(),
    # Views whose memory holds other signs.
    "conjugate": complex_values.conj(),
    "negative": complex_values.conj().imag,
    "parameter": nn.Parameter(torch.randn(3)),
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "mask": torch.tensor([True, False]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_any_tensor_is_written_as_it_reads(name):
    tensor = TENSORS[name]
    content = to_bytes({"x": tensor})
    read = safetensors.torch.load(content)["x"]
    assert read.dtype == tensor.dtype
    assert torch.equal(read, tensor)
    # The same bytes as of a tensor that never had another layout.
    assert content == safetensors.torch.save({"x": torch.tensor(tensor.tolist(), dtype=tensor.dtype).view(read.shape)})


def test_the_size_is_that_of_the_bytes():
    named = {f"layer.{name}": tensor for name, tensor in TENSORS.items()} | {"größe": torch.ones(100, dtype=torch.int8)}
    for tensors in (named, {}, {"x": torch.ones(3)}):
        assert size_of(tensors) == len(to_bytes(tensors))


def test_tied_tensors_are_written_twice():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    state = network.state_dict()
    state["0.bias"] = state["1.bias"] = torch.zeros(8)[2:6]
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save(state)
    read = safetensors.torch.load(to_bytes(state))
    assert all(torch.equal(read[name], value) for name, value in state.items())
    assert network[1].weight is network[0].weight


def test_a_student_and_its_checkpoint_have_the_same_bytes(tmp_path):
    classifier = create("cifar:resnet8", classes=3)
    state = classifier.network.state_dict()
    path = save(classifier, tmp_path)
    Checkpoints(tmp_path).save("00-000000001", state, {})
    classifier.to(memory_format=torch.channels_last)
    again = save(classifier, tmp_path / "again")
    contents = path.read_bytes(), (tmp_path / "00-000000001" / "tensors.safetensors").read_bytes(), again.read_bytes()
    assert set(contents) == {safetensors.torch.save(state)}
