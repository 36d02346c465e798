import weakref
from pathlib import Path

import pytest
import torch
from contract import assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generator, seeds
from torch import nn
from two_ranks import run_two_ranks

from wsss_blocks.losses import image_text_contrastive_loss
from wsss_blocks.training import cached_gradient_backward


class Pair(nn.Module):
    """Two towers and a temperature; a dropout of each row."""

    def __init__(self, dropout=0.0, seed=0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = (
            nn.Sequential(nn.Linear(d, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))
            for d in (6, 5)
        )
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.to(dtype)

    def loss(self, image, text):
        return image_text_contrastive_loss(image, text, self.scale.exp())

    def encode_text(self, a, b):
        return self.text(a + b)

    def forward(self, image, text):
        return {"image": self.image(image), "text": self.text(text), "scale": self.scale.exp()}

    def grads(self):
        found = {k: p.grad for k, p in self.named_parameters()}
        self.zero_grad()
        return found


def batch(size, seed=0, dtype=torch.float64):
    g = generator(seed)
    return torch.randn(size, 6, generator=g, dtype=dtype), torch.randn(
        size, 5, generator=g, dtype=dtype
    )


def assert_grads(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 1e-6, name
        assert (found[name] - grad).abs().max() < tolerance, name


def plain(model, images, texts):
    loss = model.loss(model.image(images), model.text(texts))
    loss.backward()
    return loss.detach(), model.grads()


@settings(max_examples=20)
@given(seeds, st.integers(1, 9), st.integers(1, 11))
def test_equals_the_plain_batch(seed, size, chunk_size):
    model, inputs = Pair(), batch(size, seed)
    loss, expected = plain(model, *inputs)
    ones = torch.ones_like(inputs[1])
    for encoders, given_inputs in (
        ([model.image, model.text], inputs),
        ([model.image, model.encode_text], [inputs[0], (inputs[1] - ones, ones)]),
        ([model.image, model.encode_text], [{"input": inputs[0]}, {"b": inputs[1], "a": 0 * ones}]),
    ):
        cached = cached_gradient_backward(encoders, given_inputs, model.loss, chunk_size=chunk_size)
        assert not cached.requires_grad
        assert_close(cached, loss)
        found = model.grads()
        for name, grad in expected.items():
            assert (found[name] - grad).abs().max() < 1e-10, name


@pytest.mark.parametrize("chunk_size", [3, 4, 10, 64])
def test_one_module_makes_all_embeddings(chunk_size):
    model, inputs = Pair(), batch(10)
    _, expected = plain(model, *inputs)
    cached_gradient_backward([model], [inputs], image_text_contrastive_loss, chunk_size=chunk_size)
    assert_grads(model.grads(), expected)  # the scale once, not once per chunk
    cached_gradient_backward(
        [lambda x: (model.image(x),), lambda x: {"z": model.text(x), "s": model.scale.exp()}],
        inputs, image_text_contrastive_loss, chunk_size=chunk_size,
    )  # fmt: skip
    assert_grads(model.grads(), expected)


def chunks_of(model, inputs, size):
    """The same random numbers as the cached pass: each tower alone, chunk by chunk."""
    images, texts = (
        torch.cat([tower(x) for x in part.split(size)])
        for tower, part in zip((model.image, model.text), inputs, strict=True)
    )
    return model.loss(images, texts)


def test_dropout_is_drawn_once():
    model, inputs = Pair(dropout=0.5), batch(10)
    torch.manual_seed(7)
    loss = chunks_of(model, inputs, 4)
    after = torch.get_rng_state()
    loss.backward()
    expected = model.grads()
    torch.manual_seed(7)
    cached = cached_gradient_backward([model.image, model.text], inputs, model.loss, chunk_size=4)
    assert_close(cached, loss)
    assert_grads(model.grads(), expected)
    assert_same(torch.get_rng_state(), after)  # as if each chunk had been encoded once
    again = cached_gradient_backward([model.image, model.text], inputs, model.loss, chunk_size=4)
    assert again != cached


@pytest.mark.cuda
@pytest.mark.parametrize("moved_inside", [False, True])
def test_dropout_on_a_gpu_is_drawn_once(moved_inside):
    model, inputs = Pair(dropout=0.5).cuda(), [x.cuda() for x in batch(10)]
    torch.manual_seed(7)
    chunks_of(model, inputs, 4).backward()
    after, expected = torch.cuda.get_rng_state(), model.grads()
    torch.manual_seed(7)
    if moved_inside:  # what the inputs do not say, the weights do
        inputs = [x.cpu() for x in inputs]
        for tower in (model.image, model.text):
            tower.register_forward_pre_hook(lambda _, args: (args[0].cuda(),))
    cached_gradient_backward([model.image, model.text], inputs, model.loss, chunk_size=4)
    assert_grads(model.grads(), expected)
    assert_same(torch.cuda.get_rng_state(), after)


def test_randomness_of_the_loss_is_that_of_one_pass():
    model, inputs = Pair(dropout=0.3), batch(6)
    drop = nn.Dropout(0.4)

    def loss_fn(image, text):
        return model.loss(drop(image), text)

    torch.manual_seed(3)
    loss_fn(model.image(inputs[0]), model.text(inputs[1])).backward()
    after, expected = torch.get_rng_state(), model.grads()
    torch.manual_seed(3)
    cached_gradient_backward([model.image, model.text], inputs, loss_fn, chunk_size=6)
    assert_grads(model.grads(), expected)
    assert_same(torch.get_rng_state(), after)


def test_gradients_are_added():
    model, inputs = Pair(), batch(5)
    _, expected = plain(model, *inputs)
    for _ in range(2):
        cached_gradient_backward([model.image, model.text], inputs, model.loss, chunk_size=2)
    assert_grads(model.grads(), {name: 2 * grad for name, grad in expected.items()})


def test_loss_scale_is_applied_once():
    model, inputs = Pair(), batch(7)
    _, expected = plain(model, *inputs)
    scaled = []

    def backward(loss):
        scaled.append(loss)
        (1024 * loss).backward()

    cached_gradient_backward(
        [model.image, model.text], inputs, model.loss, chunk_size=2, backward=backward
    )
    found = model.grads()
    assert len(scaled) == 1
    assert_grads({name: grad / 1024 for name, grad in found.items()}, expected)


@pytest.mark.parametrize("outside", [False, True])
def test_autocast(outside):
    """Inside the encoders, where it belongs, and around it all."""
    model, inputs = Pair(dtype=torch.float32), batch(9, dtype=torch.float32)
    _, exact = plain(model, *inputs)

    def cast(tower):
        def encode(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=not outside):
                return tower(x)

        return encode

    encoders = [cast(model.image), cast(model.text)]
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = (
            tower(x) for tower, x in zip((model.image, model.text), inputs, strict=True)
        )
    model.loss(images, texts).backward()
    expected = model.grads()
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        cached_gradient_backward(encoders, inputs, model.loss, chunk_size=4)
    found = model.grads()
    for name, grad in expected.items():
        assert grad is not None
        size = exact[name].abs().max()
        assert (found[name] - grad).abs().max() < 0.02 * size, name
        assert (found[name] - exact[name]).abs().max() > 0 or name == "scale"


def test_frozen_and_unused_towers_are_left_alone():
    model, inputs = Pair(), batch(9)
    _, expected = plain(model, *inputs)
    model.image.requires_grad_(False)
    calls = []

    def image(x):
        calls.append((len(x), torch.is_grad_enabled()))
        return model.image(x)

    cached_gradient_backward([image, model.text], inputs, model.loss, chunk_size=3)
    assert calls == [(3, False)] * 3 + [(3, True)]  # the fourth shows that it is frozen
    found = model.grads()
    assert all(grad is None for name, grad in found.items() if name.startswith("image"))
    trained = {k: g for k, g in expected.items() if not k.startswith("image")}
    assert_grads({k: found[k] for k in trained}, trained)
    calls.clear()
    cached_gradient_backward(
        [model.text, image], inputs[::-1], lambda t, i: t.square().sum(), chunk_size=3
    )
    assert len(calls) == 3


def test_statistics_of_batch_norm_are_updated_once_per_chunk():
    norm, twin = nn.BatchNorm1d(6).double(), nn.BatchNorm1d(6).double()
    images, _ = batch(8)
    cached_gradient_backward([norm], [images], lambda z: (z**3).sum(), chunk_size=3)
    for part in images.split(3):
        twin(part)
    assert norm.num_batches_tracked == 3
    assert_close(norm.running_mean, twin.running_mean)
    assert_close(norm.running_var, twin.running_var)


def test_one_chunk_is_alive_at_a_time():
    alive, most = [], []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            kept = x.clone()
            ctx.save_for_backward(kept)
            alive.append(weakref.ref(kept))
            most.append(sum(ref() is not None and ref().numel() for ref in alive))
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    model = Pair()
    towers = [lambda x, t=t: Watched.apply(t(x)) for t in (model.image, model.text)]
    for size in (6, 18):
        alive.clear()
        most.clear()
        cached_gradient_backward(towers, batch(size), model.loss, chunk_size=3)
        assert len(most) == 4 * size // 3
        assert max(most) == 3 * 4


def test_rows_of_encoders_may_differ():
    model = Pair()
    images, _ = batch(3)
    _, texts = batch(7, seed=1)

    def loss_fn(image, text):
        return (image @ text.T).logsumexp(1).sum()

    loss_fn(model.image(images), model.text(texts)).backward()
    expected = model.grads()
    cached_gradient_backward([model.image, model.text], [images, texts], loss_fn, chunk_size=2)
    found = model.grads()
    assert found.pop("scale") is expected.pop("scale") is None
    assert_grads(found, expected)


def test_errors():
    model, inputs = Pair(), batch(4)
    encoders = [model.image, model.text]

    def call(encoders=encoders, inputs=inputs, loss_fn=model.loss, chunk_size=2):
        return cached_gradient_backward(encoders, inputs, loss_fn, chunk_size=chunk_size)

    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        call(chunk_size=0)
    with pytest.raises(TypeError, match="encoders must be a sequence"):
        call(encoders=model.encode_text)
    with pytest.raises(ValueError, match=r"inputs must be one per encoder \(2\), got 1"):
        call(inputs=inputs[:1])
    with pytest.raises(ValueError, match=r"inputs\[1\] must have one number of rows, .* \[3, 4\]"):
        call(inputs=[inputs[0], (inputs[1], inputs[1][:3])])
    with pytest.raises(ValueError, match=r"inputs\[0\] must have one number of rows, .* got \[0\]"):
        call(inputs=[inputs[0][:0], inputs[1]])
    with pytest.raises(TypeError, match=r"inputs\[1\]\['a'\] must be a torch.Tensor, got list"):
        call(inputs=[inputs[0], {"a": [1]}])
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a sequence, got 3"):
        call(inputs=[3, inputs[1]])
    with pytest.raises(TypeError, match=r"encoders\[0\] must return tensors, got NoneType"):
        call(encoders=[lambda x: None, model.text])
    with pytest.raises(TypeError, match=r"encoders\[1\] must return tensors, got list"):
        call(encoders=[model.image, lambda x: [x, "a"]])
    with pytest.raises(ValueError, match=r"encoders\[0\] must return one row .* \(2\), got 1"):
        call(encoders=[lambda x: x[:1], model.text])
    with pytest.raises(ValueError, match="loss_fn must return a tensor with one value"):
        call(loss_fn=lambda i, t: i)


SCRIPT = """
import sys
sys.path[:0] = sys.argv[3:]
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from test_cached_gradients import Pair, batch, chunks_of
from wsss_blocks.losses import image_text_contrastive_loss
from wsss_blocks.training import cached_gradient_backward

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
whole = batch(14)
part = [x[7 * rank:7 * rank + 7] for x in whole]

def loss_fn(image, text, scale):
    return image_text_contrastive_loss(image, text, scale, gather_distributed=True)

class Text(torch.nn.Module):  # with the scale, so that it is averaged, too
    def __init__(self, model):
        super().__init__()
        self.text, self.scale = model.text, model.scale
    def forward(self, x):
        return self.text(x), self.scale.exp()

reference = Pair()
chunks_of(reference, whole, 14).backward()
expected = reference.grads()
for wrap in ("each", "both"):
    model = Pair()
    if wrap == "each":
        encoders, inputs = [DDP(model.image), DDP(Text(model))], part
    else:
        encoders, inputs = [DDP(model)], [part]
    exchanges = []
    def hook(state, bucket):
        exchanges.append(bucket.index())
        flat = bucket.buffer() / 2
        return dist.all_reduce(flat, async_op=True).get_future().then(lambda f: f.value()[0])
    for encoder in encoders:
        encoder.register_comm_hook(None, hook)
    for step in range(3):  # a reducer left in the middle of a step would complain in the next
        exchanges.clear()
        loss = cached_gradient_backward(encoders, inputs, loss_fn, chunk_size=3)
        assert exchanges == [0] * len(encoders), exchanges
        found = model.grads()
        for name, grad in expected.items():
            assert grad.abs().max() > 1e-4
            error = (found[name] - grad).abs().max()
            assert error < 1e-10, (wrap, name, error)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path):
    here = Path(__file__).parent
    run_two_ranks(SCRIPT, tmp_path / "store", here, here.parent)


def test_accelerate_prepares_what_it_takes():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, inputs = Pair(), batch(6)
    _, expected = plain(model, *inputs)
    prepared = accelerator.prepare(model)
    cached_gradient_backward(
        [prepared], [inputs], image_text_contrastive_loss, chunk_size=4,
        backward=accelerator.backward,
    )  # fmt: skip
    assert_grads(model.grads(), expected)
