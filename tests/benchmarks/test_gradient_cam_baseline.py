import pytest
import timm.models
import torch
from timm.models.resnet import BasicBlock

from benchmarks.baselines import gradient_cam_loop
from wsss_blocks.cam import gradient_cam, tap_output


@pytest.mark.parametrize("form", [gradient_cam_loop.published, gradient_cam_loop.best])
@pytest.mark.parametrize("tokens", [False, True])
def test_computes_what_the_block_computes(form, tokens):
    torch.manual_seed(0)
    if tokens:
        net = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
        )
    else:
        net = timm.models.ResNet(BasicBlock, (1,) * 4, channels=(4, 4, 8, 8), num_classes=5)
    layer = net.eval().blocks[-1].norm1 if tokens else net.eval().layer3
    images = torch.randn(3, 3, 32, 32)
    labels = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]]).float()
    with tap_output(layer) as taps:
        scores = net(images)
    ours = gradient_cam(scores, taps[0], labels, grid=(4, 4) if tokens else None)
    assert ours.amax() > 0
    torch.testing.assert_close(form(net, layer, images, labels, first=int(tokens)), ours)
