"""Mistakes that people make, planted one by one: the message must name what is wrong.

Each fault is a function that makes the mistake in an empty folder, and the patterns that the
message must match: the argument or the file, what was expected and what came.
"""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss_blocks import (
    backbones,
    cam,
    data,
    decoders,
    heads,
    losses,
    memory,
    metrics,
    pooling,
    refine,
    segmenters,
    training,
    viz,
)

__all__ = ["FAULTS", "Fault", "plant"]


@dataclass(frozen=True)
class Fault:
    """A mistake and what the library must say about it."""

    name: str
    kind: str  # "tensors", "files"
    make: Callable[[Path], object]
    says: tuple[str, ...]


FAULTS: list[Fault] = []


def plant(one: Fault, folder: Path) -> str:
    """Make the mistake; return the message or raise AssertionError saying what it lacks."""
    try:
        one.make(folder)
    except (ValueError, TypeError, OSError) as error:
        message = str(error)
        lacking = [pattern for pattern in one.says if not re.search(pattern, message)]
        if lacking:
            raise AssertionError(f"{one.name}: {message!r} lacks {lacking}") from error
        return message
    except Exception as error:
        raise AssertionError(f"{one.name}: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{one.name}: nothing was said")


def tensors(*says: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Enter a mistake with arguments in memory."""

    def enter(make: Callable[[], object]) -> Callable[[], object]:
        name = make.__name__.replace("_", " ")
        FAULTS.append(Fault(name, "tensors", lambda folder: make(), says))
        return make

    return enter


def files(*says: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Enter a mistake with files."""

    def enter(make: Callable[[Path], object]) -> Callable[[Path], object]:
        FAULTS.append(Fault(make.__name__.replace("_", " "), "files", make, says))
        return make

    return enter


def tiny_encoder() -> nn.Module:
    return backbones.SmallCNN((4, 8), blocks=(0, 0)).eval()


def tiny_loda() -> nn.Module:
    return segmenters.create_loda(words=["cat"], dim=4, image_norm=True).eval()


def zero_shot_segmenter() -> nn.Module:
    model = tiny_loda()
    bank = segmenters.zero_shot_bank(model, ["cat", "dog"], templates=["{}"])
    return segmenters.ZeroShotSegmenter(model, bank, size=8)


IMAGES = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
CAM = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
MASK = torch.arange(2 * 4 * 4).view(2, 4, 4) % 4
FEATURES = torch.linspace(-1, 1, 2 * 5 * 4 * 4).view(2, 5, 4, 4)
TEXT = torch.eye(5)[:3]
BACKGROUND = torch.eye(5)[4:]


# --- shapes ----------------------------------------------------------------------------------


@tensors("features must have shape", r"\(B, D, h, w\)", r"got \(2, 16, 5\)")
def tokens_instead_of_a_feature_map() -> object:
    return pooling.class_average_pool(FEATURES.flatten(2).mT, MASK, num_classes=4)


@tensors("tokens must have shape", r"\(B, N, D\)", r"got \(2, 5, 4, 4\)")
def a_feature_map_instead_of_tokens() -> object:
    return pooling.max_response_pool(FEATURES, k=2)


@tensors("images must have shape", r"\(B, 3, H, W\)", r"got \(3, 8, 8\)")
def one_image_without_the_batch_axis() -> object:
    return tiny_encoder()(IMAGES[0])


@tensors("images must have shape", r"\(B, 3, H, W\)", r"got \(2, 1, 8, 8\)")
def grey_images() -> object:
    return tiny_encoder()(IMAGES[:, :1])


@tensors("images must have shape", r"\(B, 3, H, W\)", r"got \(2, 8, 8, 3\)")
def images_with_channels_last() -> object:
    return refine.NoRefiner()(IMAGES.permute(0, 2, 3, 1), CAM.relu())


@tensors("labels must have shape", "K=3", r"got \(2, 4\)", "background column")
def labels_with_a_background_column() -> object:
    labels = torch.cat([torch.ones(2, 1), LABELS], 1)
    return losses.multi_label_soft_margin_loss(torch.zeros(2, 3), labels)


@tensors("labels must have shape", "K=3", r"got \(2, 4\)", "background column")
def labels_with_a_background_column_for_pseudo_labels() -> object:
    return cam.cam_to_label(CAM, torch.ones(2, 4), size=(8, 8))


@tensors("labels must have shape", "K=2", r"got \(2, 3\)")
def maps_without_background_in_a_refiner() -> object:
    return refine.PixelAdaptiveRefine()(IMAGES, CAM.relu(), labels=LABELS)


@tensors("labels must have shape", "B=2", r"got \(1, 3\)")
def labels_of_another_batch() -> object:
    return refine.refine_to_label(CAM.relu(), IMAGES, LABELS[:1], refine.NoRefiner())


@tensors("mask must have shape", "h=4, w=4", r"got \(2, 8, 8\)")
def a_full_size_mask_for_a_feature_grid() -> object:
    return losses.patch_token_contrast_loss(FEATURES, torch.zeros(2, 8, 8).long())


@tensors("class_text must have shape", "D=5", r"got \(3, 7\)")
def text_of_another_width() -> object:
    return losses.global_implicit_alignment_loss(
        FEATURES.mean((2, 3)), LABELS, torch.eye(7)[:3], BACKGROUND
    )


@tensors("features must have shape", "D=6", r"got \(2, 5, 4, 4\)")
def a_head_for_another_encoder() -> object:
    return heads.ClassHead(6, 3)(FEATURES)


@tensors("cam_fn must return", r"\(B, C, h, w\)", r"got \(4, 2\)")
def a_cam_function_that_returns_logits() -> object:
    return cam.multi_scale_cam(lambda x: x.mean((2, 3))[:, :2], IMAGES)


@tensors("refiner must return", r"8, 8\)", r"got \(2, 2, 3, 4, 4\)")
def a_refiner_that_keeps_the_small_grid() -> object:
    return refine.refine_to_label(CAM.relu(), IMAGES, LABELS, lambda images, maps, **_: maps)


@tensors("maps must hold one map for each of", r"\(5, 5\)", "got 1")
def a_decoder_of_two_blocks_with_one_map() -> object:
    return decoders.AllBlocksDecoder([5, 5], 4, hidden_dim=2, heads=1)([FEATURES])


@tensors("skip must be given", "skip_dim=4", "got None")
def a_decoder_without_its_fine_map() -> object:
    return decoders.LargeFOV(5, 4, hidden_dim=2, skip_dim=4)(FEATURES)


@tensors("image", r"one shape", "'a'", "'b'", r"\(3, 8, 8\)", r"\(3, 4, 8\)")
def a_batch_of_images_of_different_sizes() -> object:
    small = data.new_sample(IMAGES[1, :, :4], id="b")
    return data.collate([data.new_sample(IMAGES[0], id="a"), small])


@tensors("text must have shape", r"\(B=2, D=5\)|B=2", r"got \(3, 5\)")
def captions_of_another_number_of_images() -> object:
    return losses.image_text_contrastive_loss(TEXT[:2], TEXT, 14.3)


@tensors("given must have shape", "K=2", r"got \(2, 3\)", "background column")
def given_classes_with_a_background_column() -> object:
    return zero_shot_segmenter().masks_at(IMAGES, (0.5,), given=LABELS)


# --- types and devices -----------------------------------------------------------------------


@tensors("images must be a floating-point", "got torch.uint8")
def images_of_bytes() -> object:
    return tiny_encoder()((IMAGES * 255).byte())


@tensors("box must be an integer", "got torch.float32")
def a_box_of_floats() -> object:
    return cam.cam_to_label(CAM, LABELS, size=(8, 8), box=torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 2))


@tensors("mask must be an integer", "got torch.float32")
def a_mask_of_floats() -> object:
    return losses.balanced_segmentation_loss(torch.zeros(2, 4, 4, 4), MASK.float())


@tensors("valid must be a bool", "got torch.float32")
def a_valid_mask_of_floats() -> object:
    return pooling.global_average_pool(CAM, valid=torch.ones(2, 4, 4))


@tensors("cam must be a torch.Tensor", "got ndarray")
def a_numpy_array() -> object:
    return cam.normalize_cam(CAM.numpy())


@tensors("labels must be a torch.Tensor", "got list")
def labels_as_a_list() -> object:
    return cam.cam_to_label(CAM, LABELS.tolist(), size=(8, 8))


@tensors("x must have the dtype of the weights", "float32", "got torch.bfloat16")
def half_precision_features_without_autocast() -> object:
    return heads.ProjectionHead(5, 4)(FEATURES.flatten(2).mT.bfloat16())


@tensors("text must be on the device of features", "cpu", "got meta")
def text_on_another_device() -> object:
    return cam.similarity_cam(FEATURES, TEXT.to("meta"))


@tensors("labels must be on cpu", "got meta")
def labels_on_another_device() -> object:
    return losses.multi_label_soft_margin_loss(torch.zeros(2, 3), LABELS.to("meta"))


@tensors("num_classes must be an int", "got '4'")
def a_number_read_as_text() -> object:
    return pooling.class_average_pool(FEATURES, MASK, num_classes="4")


@tensors("rates must be a sequence", "got 6")
def one_rate_in_the_place_of_several() -> object:
    return decoders.DeepLabV2Head(5, 4, rates=6)


# --- values ----------------------------------------------------------------------------------


@tensors(r"images must be RGB in \[0, 1\]", "got values from 0 to 255")
def images_in_0_255() -> object:
    return tiny_encoder()(IMAGES * 255)


@tensors(r"images must be RGB in \[0, 1\]", "not normalised", "got values from -2.118")
def normalised_images() -> object:
    return tiny_encoder()((IMAGES - 0.485) / 0.229)


@tensors(r"images must be RGB in \[0, 1\]", "got values from 0 to 255")
def images_in_0_255_in_a_refiner() -> object:
    return refine.PixelAdaptiveRefine(dilations=(1,))(IMAGES * 255, CAM.relu())


@tensors("features must be finite", "got 1 NaN")
def a_nan_in_the_features_of_a_pooling() -> object:
    features = FEATURES.clone()
    features[1, 2, 3, 0] = torch.nan
    return pooling.class_average_pool(features, MASK, num_classes=4)


@tensors("features must be finite", "got 160 NaN")
def features_after_a_diverged_step() -> object:
    return losses.cross_contrastive_loss(FEATURES / 0, MASK, LABELS, TEXT, BACKGROUND)


@tensors("logits must be finite", "got 1 NaN or infinite")
def an_infinite_logit() -> object:
    logits = torch.zeros(2, 3)
    logits[0, 0] = torch.inf
    return losses.multi_label_soft_margin_loss(logits, LABELS)


@tensors("cam must be finite", "got 1 NaN")
def a_nan_in_a_cam() -> object:
    maps = CAM.clone()
    maps[0, 0, 0, 0] = torch.nan
    return cam.cam_to_label(maps, LABELS, size=(8, 8))


@tensors("mask must hold ids", r"\[0, 4\)", "ignore_index=255", "got 17")
def a_mask_of_more_classes_than_logits() -> object:
    return losses.balanced_segmentation_loss(torch.zeros(2, 4, 4, 4), MASK + 17)


@tensors("mask must hold ids", r"\[0, 4\)", "ignore_index=-1", "got 255")
def a_mask_with_255_under_another_ignore_index() -> object:
    mask = MASK.clone()
    mask[0, 0, 0] = 255
    return pooling.patch_class_weights(mask, size=(2, 2), num_classes=4, ignore_index=-1)


@tensors("mask must hold ids", r"\[0, 100\)", "ignore_index=-100", "got 156")
def a_byte_mask_whose_id_wraps_to_the_ignored_one() -> object:
    mask = torch.full((1, 2, 2), 156, dtype=torch.uint8)  # -100 cut to a byte is 156
    return pooling.patch_class_weights(mask, size=(1, 1), num_classes=100, ignore_index=-100)


@tensors("labels must be multi-hot", r"\[0, 1\]", "to 3")
def class_ids_instead_of_multi_hot_labels() -> object:
    return losses.multi_label_soft_margin_loss(torch.zeros(2, 3), torch.tensor([[1, 3, 0]] * 2))


@tensors("maps must be >= 0", "got a minimum of -1")
def raw_scores_in_a_refiner() -> object:
    return refine.NoRefiner()(IMAGES, CAM)


@tensors("cam must be >= 0", "got a minimum of -1")
def a_raw_cam_under_a_background() -> object:
    return refine.add_background(CAM, value=0.3)


@tensors("box must hold top <= bottom", r"\(8, 8\)", r"got \[0, 0, 8, 16\]")
def a_box_of_another_image() -> object:
    box = torch.tensor([[0, 0, 8, 16]] * 2)
    return cam.cam_to_label(CAM, LABELS, size=(8, 8), box=box)


@tensors("size and number must leave 8 different places", "8 x 8", "got size=8")
def crops_as_large_as_the_image() -> object:
    return cam.negative_crops(IMAGES, torch.zeros(2, 8, 8, dtype=torch.int64), size=8)


@tensors("mask must have shape", "H=8, W=8", r"got \(2, 4, 4\)")
def crops_by_a_mask_of_the_feature_grid() -> object:
    return cam.negative_crops(IMAGES, torch.zeros(2, 4, 4, dtype=torch.int64), size=2)


@tensors("positive must be a bool", "got torch.float32")
def kinds_of_crops_as_numbers() -> object:
    tokens = FEATURES.flatten(2).mT
    return losses.crop_token_contrast_loss(tokens, tokens, torch.ones(2, 16))


@tensors("x must have shape", r"\(B, N, D\)", r"got \(2, 5, 4, 4\)")
def a_feature_map_for_a_head_of_tokens() -> object:
    return heads.DINOHead(5, 4, hidden_dim=4, bottleneck_dim=4)(FEATURES)


@tensors("threshold must be >= 0 with low <= high", r"got \(0.7, 0.25\)")
def thresholds_the_wrong_way_round() -> object:
    return cam.cam_to_label(CAM, LABELS, size=(8, 8), threshold=(0.7, 0.25))


@tensors("thresholds must be 0 <= low <= high", r"got \(0.7, 0.25\)")
def backgrounds_the_wrong_way_round() -> object:
    return refine.refine_to_label(
        CAM.relu(), IMAGES, LABELS, refine.NoRefiner(), thresholds=(0.7, 0.25)
    )


@tensors("threshold must be left at 0.5", "background_power", "got 0.3")
def two_kinds_of_background_at_once() -> object:
    return cam.cam_to_label(CAM, LABELS, size=(8, 8), threshold=0.3, background_power=2.0)


@tensors("ignore_index must be greater than K=300", "got 255")
def more_classes_than_the_ignored_id() -> object:
    return cam.cam_to_label(torch.zeros(1, 300, 1, 1), torch.zeros(1, 300), size=(2, 2))


@tensors("dtype must hold ignore_index=300", "got torch.uint8")
def an_ignored_id_that_a_byte_cannot_hold() -> object:
    return cam.cam_to_label(CAM, LABELS, size=(4, 4), ignore_index=300, dtype=torch.uint8)


@tensors("background must be given", "margin", "got None")
def a_margin_without_background_text() -> object:
    return cam.similarity_cam(FEATURES, TEXT, mode="margin")


@tensors("names must be K=3", "distinct", "got .*cat.*cat")
def a_text_bank_with_a_class_twice() -> object:
    return backbones.TextBank(TEXT, None, names=["cat", "dog", "cat"], source="fault")


@tensors(r"ids must lie in \[0, 300\)", "got .* to 999")
def token_ids_of_another_tokenizer() -> object:
    from open_clip.transformer import TextTransformer

    tower = TextTransformer(4, vocab_size=300, width=4, heads=1, layers=1, output_dim=3)
    ids = torch.tensor([[1, 999]])
    return backbones.OpenCLIPTextEncoder(tower)(ids, ids > 0)


@tensors("k must be at least 1", "got 0")
def a_top_k_of_nothing() -> object:
    return pooling.max_response_pool(FEATURES.flatten(2).mT, k=0)


@tensors("counts must be None", "reduction", "got 'none'")
def counts_for_a_loss_that_does_not_divide() -> object:
    return losses.global_implicit_alignment_loss(
        FEATURES.mean((2, 3)), LABELS, TEXT, BACKGROUND, reduction="none", counts=torch.tensor(2)
    )


@tensors("logit_scale must be positive", r"got -?2\.659")
def the_logarithm_of_a_scale_in_its_place() -> object:
    scale = -torch.tensor(1 / 0.07).log()
    return losses.image_text_contrastive_loss(TEXT, TEXT, scale)


@tensors("thresholds must be in", r"got 40")
def thresholds_in_per_cent() -> object:
    return zero_shot_segmenter().masks_at(IMAGES, (0.2, 40))


@tensors("images must be RGB in", "not normalised")
def normalised_images_for_a_segmenter_of_names() -> object:
    return zero_shot_segmenter()((IMAGES - 0.45) / 0.22)


@tensors("names must be one or more different names", "got .*background")
def background_among_the_names() -> object:
    return segmenters.zero_shot_bank(tiny_loda(), ["cat", "background"])


@tensors("templates must each hold one", r"got \['a photo'\]")
def a_template_without_a_place_for_the_name() -> object:
    return segmenters.zero_shot_bank(tiny_loda(), ["cat"], templates=["a photo"])


# --- metrics, training, figures --------------------------------------------------------------


@tensors(r"target must hold ids in \[0, 3\)", "ignore_index=255", "got 3")
def an_evaluator_that_does_not_count_background() -> object:
    return metrics.SegmentationEvaluator(3).update(MASK.clamp_max(2), MASK)


@tensors(r"pred must hold ids in \[0, 4\)", "got 255", "masked_fill")
def a_pseudo_label_with_ignored_pixels_scored() -> object:
    return metrics.SegmentationEvaluator(4).update(MASK.masked_fill(MASK == 1, 255), MASK)


@tensors("cam must have shape", "K=2", r"got \(2, 3, 4, 4\)")
def a_sweep_that_does_not_count_background() -> object:
    return metrics.ThresholdSweep(3).update(CAM, LABELS, MASK)


@tensors("samples must have a mask", r"got \['image', 'labels'\]")
def an_evaluation_of_a_data_set_without_masks() -> object:
    samples = [{"image": IMAGES[0], "labels": LABELS[0]}]
    return metrics.evaluate_masks(lambda s: s["image"][0].long(), samples, num_classes=4)


def _protocol(**change: object) -> metrics.EvaluationProtocol:
    facts = {
        "dataset": "scenes",
        "split": "val",
        "num_images": 2,
        "scales": (1.0,),
        "flip": False,
        "refiner": "none",
        "labels_used": False,
    }
    return metrics.EvaluationProtocol(**{**facts, **change})


@tensors("results", r"fraction in \[0, 1\]", "got 62.5")
def a_metric_in_per_cent() -> object:
    return metrics.write_metrics("metrics.json", {"miou": 62.5}, _protocol())


@tensors("protocol must be an EvaluationProtocol", "got NoneType")
def a_metric_without_protocol() -> object:
    return metrics.write_metrics("metrics.json", {"miou": 0.6}, None)


@tensors("threshold_source", "threshold", "got 0.4")
def a_threshold_from_nowhere() -> object:
    return _protocol(threshold=0.4)


@tensors("model must have", "only one of both has 'bias'")
def an_average_of_another_model() -> object:
    return memory.EMA(nn.Linear(2, 1)).update(nn.Linear(2, 1, bias=False))


@tensors("multipliers must name prefixes", "'decodr.'")
def a_misspelt_prefix_of_parameters() -> object:
    model = nn.ModuleDict({"decoder": nn.Linear(1, 1)})
    return training.param_groups(model, lr=0.1, multipliers={"decodr.": 10.0})


@tensors(r"warmup_steps must lie in \[0, total_steps=100\)", "got 1500")
def a_warm_up_longer_than_the_run() -> object:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return training.polynomial_schedule(optimizer, total_steps=100, warmup_steps=1500)


@tensors("name must be one of", "'seg'", "got 'segmentation'")
def a_phase_of_another_name() -> object:
    return training.Phases({"seg": 10}).active("segmentation", 3)


@tensors("names must|labels must have shape", r"K=1", r"got \(2, 3\)")
def a_figure_with_names_without_background() -> object:
    return viz.segmentation_figure(IMAGES, LABELS, path="x.png", names=["cat", "dog"])


@tensors(r"start must be in \[0, 10\]", "got 11")
def a_resume_after_the_end() -> object:
    return data.StepSampler(5, batch_size=1, steps=10, start=11)


# --- files: images and masks -----------------------------------------------------------------


def _write_image(path: Path, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1 if mode in ("L", "P") else (9, 90, 200)).save(path)
    return path


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@files("photo.jpg", "no image|does not exist")
def an_image_that_is_not_there(folder: Path) -> object:
    return data.read_image(folder / "photo.jpg")


@files("photo.jpg", "cannot be read as an image")
def a_truncated_image(folder: Path) -> object:
    path = _write_image(folder / "photo.jpg", (64, 64))
    return data.read_image(_write(path, path.read_bytes()[:400]))


@files("photo.jpg", "cannot be read as an image")
def an_empty_image_file(folder: Path) -> object:
    return data.read_image(_write(folder / "photo.jpg", b""))


@files("photo.jpg", "cannot be read as an image")
def a_text_file_called_jpg(folder: Path) -> object:
    return data.read_image(_write(folder / "photo.jpg", "<html>404 not found</html>"))


@files("photo.jpg", "cannot be read as an image")
def a_folder_called_jpg(folder: Path) -> object:
    (folder / "photo.jpg").mkdir()
    return data.read_image(folder / "photo.jpg")


@files("mask.png", "must be an indexed or grey mask", "got mode 'RGB'")
def a_colour_mask(folder: Path) -> object:
    return data.read_mask(_write_image(folder / "mask.png"))


@files("mask.png", "cannot be read as an image")
def a_truncated_mask(folder: Path) -> object:
    path = _write_image(folder / "mask.png", (64, 64), "L")
    return data.read_mask(_write(path, path.read_bytes()[:60]))


def _folder(root: Path, *names: str) -> Path:
    for name in names or ("a", "b"):
        _write_image(root / "images" / f"{name}.png")
    return root / "images"


def _labels(*ids: str) -> data.WeakLabels:
    return data.WeakLabels(("cat", "dog"), {i: ["cat"] for i in ids})


@files(r"a\.png", r"\(5, 6\)", r"got \(6, 5\)")
def a_mask_of_another_size(folder: Path) -> object:
    images = _folder(folder, "a")
    _write_image(folder / "masks" / "a.png", (5, 6), "L")
    return data.FolderDataset(images, _labels("a"), masks_dir=folder / "masks")[0]


@files("masks", r"a\.png", "no image|does not exist|no mask")
def a_mask_that_is_not_there(folder: Path) -> object:
    (folder / "masks").mkdir()
    return data.FolderDataset(_folder(folder, "a"), _labels("a"), masks_dir=folder / "masks")[0]


@files("images_dir must be a folder", "pictures")
def a_folder_of_images_that_is_not_there(folder: Path) -> object:
    return data.FolderDataset(folder / "pictures", None)


@files("no images", "images")
def a_folder_without_images(folder: Path) -> object:
    (folder / "images").mkdir()
    return data.FolderDataset(folder / "images", None)


@files("1 of 3 ids have no image", "images", "'c'")
def ids_without_files(folder: Path) -> object:
    return data.FolderDataset(_folder(folder), _labels("a", "b", "c"))


@files("1 of 2 ids have no row in labels", "'b'")
def files_without_labels(folder: Path) -> object:
    return data.FolderDataset(_folder(folder), _labels("a"), ids=["a", "b"])


@files("two images", "'a'", "a.jpg", "a.png")
def two_images_of_one_name(folder: Path) -> object:
    _write_image(folder / "images" / "a.jpg")
    return data.FolderDataset(_folder(folder), None)


@files("mask must hold ids|mask must hold", r"\[0, 255\]", "got 0 to 300")
def a_mask_too_large_for_a_png(folder: Path) -> object:
    return data.write_mask(folder / "mask.png", torch.tensor([[0, 300]]))


# --- files: weak labels ----------------------------------------------------------------------


@files("labels.csv", "no label file")
def a_label_file_that_is_not_there(folder: Path) -> object:
    return data.WeakLabels.load(folder / "labels.csv")


@files("labels.xlsx", "must end in")
def labels_in_a_spreadsheet(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.xlsx", b"PK"))


@files(r"labels.csv:3", "must hold 0 or 1", "got 'yes'")
def a_table_with_an_odd_cell(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.csv", "id,cat,dog\na,0,1\nb,yes,0\n"))


@files(r"labels.csv:2", "2 more cells")
def a_table_with_a_short_row(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.csv", "id,cat,dog\na,0\n"))


@files(r"labels.csv:3", "repeats the id 'a'")
def a_table_with_an_id_twice(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.csv", "id,cat,dog\na,0,1\na,1,0\n"))


@files("labels.csv", "header")
def an_empty_table(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.csv", ""))


@files("labels.csv", "80 classes", "got 20")
def a_table_of_20_classes_for_80(folder: Path) -> object:
    header = ",".join(["id", *data.VOC_NAMES])
    path = _write(folder / "labels.csv", f"{header}\na{',0' * 20}\n")
    return data.WeakLabels.load(path, names=data.COCO_NAMES)


@files("labels.csv", "'zebra'|zebra", "cat|names")
def a_class_that_is_not_among_the_names(folder: Path) -> object:
    path = _write(folder / "labels.csv", "id,labels\na,cat;zebra\n")
    return data.WeakLabels.load(path, names=("cat", "dog"))


@files(r"a\.png", r"0\.\.2 \(names has 2 classes\)", "got 9")
def an_export_of_masks_with_more_classes_than_names(folder: Path) -> object:
    data.write_mask(folder / "masks" / "a.png", torch.full((2, 2), 9))
    out = folder / "out"
    return data.export_masks(folder / "masks", out, to="voc-png", names=("cat", "dog"))


@files("out", "new or empty folder")
def an_export_into_a_folder_that_holds_something(folder: Path) -> object:
    data.write_mask(folder / "out" / "a.png", torch.zeros(2, 2).long())
    return data.export_masks(folder / "out", folder / "out", to="voc-png", names=("cat",))


@files("'a'", "give each pixel a class", "ignored pixels")
def a_submission_to_voc_with_ignored_pixels(folder: Path) -> object:
    masks = {"a": torch.full((2, 2), 255)}
    out = folder / "out.tar.gz"
    return data.export_masks(masks, out, to="voc-server-tar", names=data.VOC_NAMES)


@files("labels.json", "not a JSON file|JSON")
def a_broken_json_file(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.json", '{"names": ["cat"], "labels": {'))


@files("labels.json", "names|labels")
def a_json_file_of_something_else(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.json", '{"a": ["cat"]}'))


@files("labels.json", "list of class names")
def a_json_file_with_names_instead_of_lists(folder: Path) -> object:
    content = {"names": ["cat"], "labels": {"a": "cat"}}
    return data.WeakLabels.load(_write(folder / "labels.json", json.dumps(content)))


def _npy(path: Path, columns: int) -> Path:
    vectors = {"a": np.eye(columns, dtype=np.float32)[0]}
    np.save(path, np.array(vectors, dtype=object), allow_pickle=True)
    return path


@files("cls_labels.npy", "20 label columns", "names has 80", "those of voc")
def the_voc_label_file_for_coco(folder: Path) -> object:
    return data.WeakLabels.load(_npy(folder / "cls_labels.npy", 20), names=data.COCO_NAMES)


@files("cls_labels.npy", "names must be given")
def an_array_of_labels_without_names(folder: Path) -> object:
    return data.WeakLabels.load(_npy(folder / "cls_labels.npy", 20))


@files("cls_labels.npy", "is not a .npy file of a dictionary", "float64")
def an_array_of_numbers_instead_of_labels(folder: Path) -> object:
    np.save(folder / "cls_labels.npy", np.zeros(3))
    return data.WeakLabels.load(folder / "cls_labels.npy", names=("cat",))


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('a label file ran code')",)


@files("cls_labels.npy", "not a plain pickle", "exec")
def a_label_file_with_code_in_it(folder: Path) -> object:
    path = folder / "cls_labels.npy"
    np.save(path, np.array({"a": _Harmful()}, dtype=object), allow_pickle=True)
    return data.WeakLabels.load(path, names=("cat",))


@files("cls_labels.npy", "not a plain pickle|not a .npy")
def a_truncated_label_array(folder: Path) -> object:
    path = _npy(folder / "cls_labels.npy", 20)
    return data.WeakLabels.load(_write(path, path.read_bytes()[:-20]), names=data.VOC_NAMES)


@files(r"labels.txt:1", r"\[0, 2\)", "got '0 2'")
def a_class_number_out_of_range(folder: Path) -> object:
    return data.WeakLabels.load(_write(folder / "labels.txt", "a 0 2\n"), names=("cat", "dog"))


@files("a.png", "class id 9", "names has 2")
def masks_of_more_classes_than_names(folder: Path) -> object:
    data.write_mask(folder / "a.png", torch.full((2, 2), 9))
    return data.WeakLabels.from_masks(folder, ["a"], names=("cat", "dog"))


@files("instances.json", "not a COCO instances file|annotations")
def a_coco_file_without_annotations(folder: Path) -> object:
    content = {"categories": [], "images": []}
    return data.WeakLabels.from_coco_json(_write(folder / "instances.json", json.dumps(content)))


@files("class 'bird'|'bird'", "not among", "cat, dog|2 names")
def a_label_that_is_no_class(folder: Path) -> object:
    return data.WeakLabels(("cat", "dog"), {"a": ["bird"]})


# --- files: layouts --------------------------------------------------------------------------


def _voc(root: Path) -> Path:
    return data.write_voc_layout(root, train=2, val=1)


@files("no VOC 2012 layout", "JPEGImages", "VOC2012")
def a_folder_that_is_not_voc(folder: Path) -> object:
    return data.VOC2012(folder)


@files("no id list", "train_aug.txt")
def a_list_of_ids_that_is_not_there(folder: Path) -> object:
    _voc(folder)
    return data.VOC2012(folder, "train_aug", names=data.DIGIT_NAMES)


@files("train.txt", "lists no ids")
def an_empty_list_of_ids(folder: Path) -> object:
    _write(_voc(folder) / "ImageSets" / "Segmentation" / "train.txt", "\n")
    return data.VOC2012(folder, names=data.DIGIT_NAMES)


@files(r"train_0000\d.xml", "not among the 20 names")
def annotations_of_other_classes(folder: Path) -> object:
    _voc(folder)
    return data.VOC2012(folder)


@files("train_00001.xml", "is not XML")
def a_broken_annotation(folder: Path) -> object:
    _write(_voc(folder) / "Annotations" / "train_00001.xml", "<annotation><object>")
    return data.VOC2012(folder, names=data.DIGIT_NAMES)


@files("train_00001.xml", "no annotation")
def an_annotation_that_is_not_there(folder: Path) -> object:
    (_voc(folder) / "Annotations" / "train_00001.xml").unlink()
    return data.VOC2012(folder, names=data.DIGIT_NAMES)


@files("labels must have the classes", "zero", "got .*cat")
def label_file_of_other_classes(folder: Path) -> object:
    _voc(folder)
    labels = _labels("train_00000", "train_00001")
    return data.VOC2012(folder, labels=labels, names=data.DIGIT_NAMES)


@files("train_00000.jpg", "no image|does not exist")
def an_image_of_a_list_that_is_not_there(folder: Path) -> object:
    (_voc(folder) / "JPEGImages" / "train_00000.jpg").unlink()
    return data.VOC2012(folder, names=data.DIGIT_NAMES)[0]


@files("train2014", "val2014|annotations|images", "coco")
def a_folder_that_is_not_coco(folder: Path) -> object:
    (folder / "coco").mkdir()
    return data.COCO(folder / "coco")


@files("no VOC 2010 layout", "JPEGImages", "VOC2010")
def a_folder_that_is_not_context(folder: Path) -> object:
    return data.PascalContext(folder)


@files("images_dir must be a folder", "images/training")
def a_folder_that_is_not_ade20k(folder: Path) -> object:
    return data.ADE20K(folder)


@files("no COCO stuff and thing maps", "stuffthingmaps/val2017")
def coco_without_the_maps_of_its_stuff(folder: Path) -> object:
    _write_image(folder / "val2017" / "000000000139.jpg")
    return data.COCOStuff(folder, "val", with_masks=True)


@files("must be opened with masks")
def a_mask_of_a_data_set_opened_without(folder: Path) -> object:
    _write_image(folder / "val2017" / "000000000139.jpg")
    return data.COCOObject(folder, "val").mask_path(0)


@files("captions.csv:2", "two cells", "'one', 'two'", "quotes")
def a_caption_with_a_comma_and_no_quotes(folder: Path) -> object:
    _write(folder / "captions.csv", "image,caption\na,one, two\n")
    return data.ImageTextPairs(_folder(folder, "a"), folder / "captions.csv")


@files("1 of 2 ids have no image", "images", "'lost'")
def captions_of_an_image_that_is_not_there(folder: Path) -> object:
    return data.ImageTextPairs(_folder(folder, "a"), {"a": "a cat", "lost": "a dog"})


@files("2 of 3 shards do not exist", r"00001\.tar", r"00002\.tar")
def shards_that_were_never_downloaded(folder: Path) -> object:
    _write(folder / "00000.tar", b"")
    return data.find_shards(f"{folder}/{{00000..00002}}.tar")


@files(r"00000\.tar must be a tar file", "empty")
def a_shard_whose_download_ended_at_once(folder: Path) -> object:
    _write(folder / "00000.tar", b"")
    return data.find_shards(folder)


@files("at least 32 shards", "8 workers in 4 processes", "got 2", "fewer workers")
def more_workers_than_shards(folder: Path) -> object:
    shards = data.ShardList((folder / "0.tar", folder / "1.tar"), (9000, 9000))
    return data.ImageTextShards(shards, batch_size=64, workers=8, rank=0, world_size=4)


@files("at least one image must be usable", "got", r"[ab]\.png")
def a_data_set_of_broken_images_only(folder: Path) -> object:
    images = _folder(folder)
    for path in images.iterdir():
        _write(path, b"")
    return data.usable_images(data.FolderDataset(images, _labels("a", "b")))


@files("all images must be usable", r"b\.png")
def a_broken_image_in_a_strict_check(folder: Path) -> object:
    images = _folder(folder)
    _write(images / "b.png", b"")
    return data.usable_images(data.FolderDataset(images, _labels("a", "b")), strict=True)


@files("labels.json|labels", "photos")
def a_folder_of_photographs_without_labels(folder: Path) -> object:
    _folder(folder / "photos")
    return data.open_dataset("folder", "train", root=folder / "photos")


@files("root must be given", "got None")
def a_data_set_without_a_root(folder: Path) -> object:
    return data.open_dataset("voc", "train")


# --- files: weights, runs, text banks, metrics -----------------------------------------------


def _weights(path: Path, module: nn.Module) -> Path:
    training.save_weights(path, module)
    return path


def _cut(path: Path) -> Path:
    return _write(path, path.read_bytes()[:-7])


@files("model.safetensors", "whole|truncated|cannot be read|incomplete")
def truncated_weights(folder: Path) -> object:
    path = _cut(_weights(folder / "model.safetensors", nn.Linear(2, 1)))
    return training.load_weights(path, nn.Linear(2, 1))


@files("model.safetensors", "No such|no |not there")
def weights_that_are_not_there(folder: Path) -> object:
    return training.load_weights(folder / "model.safetensors", nn.Linear(2, 1))


@files("model.safetensors", "exactly the module's keys", "missing", "bias")
def weights_of_another_module(folder: Path) -> object:
    path = _weights(folder / "model.safetensors", nn.Linear(2, 1, bias=False))
    return training.load_weights(path, nn.Linear(2, 1))


@files("model.safetensors", r"weight must have shape \(1, 2\)", r"got \(1, 3\)")
def weights_of_another_width(folder: Path) -> object:
    path = _weights(folder / "model.safetensors", nn.Linear(3, 1))
    return training.load_weights(path, nn.Linear(2, 1))


@files("model.pth", "must hold weights only|weights")
def a_checkpoint_with_code_in_it(folder: Path) -> object:
    path = _write(folder / "model.pth", pickle.dumps({"state_dict": _Harmful()}, protocol=2))
    return training.load_weights(path, nn.Linear(2, 1))


@files("model.pth", "weights|whole|read")
def a_truncated_checkpoint(folder: Path) -> object:
    torch.save({"state_dict": nn.Linear(2, 1).state_dict()}, folder / "model.pth")
    return training.load_weights(_cut(folder / "model.pth"), nn.Linear(2, 1))


@files("model.pth", "dictionary of tensors")
def a_checkpoint_of_something_else(folder: Path) -> object:
    torch.save([1, 2, 3], folder / "model.pth")
    return training.load_weights(folder / "model.pth", nn.Linear(2, 1))


@files("prefix_map", "'encoder.'")
def a_prefix_that_no_key_has(folder: Path) -> object:
    path = _weights(folder / "model.safetensors", nn.Linear(2, 1))
    return training.load_weights(path, nn.Linear(2, 1), prefix_map={"encoder.": ""})


@files("no saved run", "run", "latest.json")
def a_run_that_was_never_saved(folder: Path) -> object:
    return training.load_run_state(folder / "run", stateful={"model": nn.Linear(2, 1)})


@files("stateful must be", "model", "got .*network")
def a_run_of_other_names(folder: Path) -> object:
    training.save_run_state(folder, step=1, stateful={"model": nn.Linear(2, 1)})
    return training.load_run_state(folder, stateful={"network": nn.Linear(2, 1)})


@files("model.safetensors", "weight must have shape", r"got \(1, 2\)")
def a_run_of_another_model(folder: Path) -> object:
    training.save_run_state(folder, step=1, stateful={"model": nn.Linear(2, 1)})
    return training.load_run_state(folder, stateful={"model": nn.Linear(3, 1)})


@files("latest.json", "JSON|read|broken")
def a_run_with_a_broken_pointer(folder: Path) -> object:
    training.save_run_state(folder, step=1, stateful={"model": nn.Linear(2, 1)})
    _write(folder / "latest.json", "{")
    return training.load_run_state(folder, stateful={"model": nn.Linear(2, 1)})


def _bank(path: Path) -> Path:
    backbones.TextBank.stand_in(["cat", "dog"], dim=8, seed=0).save(path)
    return path


@files("bank.safetensors", "'bird'", "1 of 3|missing")
def a_text_bank_with_a_missing_row(folder: Path) -> object:
    return backbones.TextBank.load(_bank(folder / "bank.safetensors"), names=["cat", "bird", "dog"])


@files("bank.safetensors", "whole|truncated|cannot be read|incomplete")
def a_truncated_text_bank(folder: Path) -> object:
    return backbones.TextBank.load(_cut(_bank(folder / "bank.safetensors")))


@files("bank.safetensors", "'classes'", "got .*weight")
def weights_instead_of_a_text_bank(folder: Path) -> object:
    path = _weights(folder / "bank.safetensors", nn.Linear(2, 1))
    return backbones.TextBank.load(path)


@files("mobilenet.safetensors", "whole|truncated|cannot be read|incomplete")
def truncated_weights_of_an_encoder(folder: Path) -> object:
    path = _cut(_weights(folder / "mobilenet.safetensors", nn.Linear(2, 1)))
    return backbones.mobilenet_v1(0.125, weights=path)


@files("mobilenet.safetensors", "keys|lacks|missing")
def weights_of_another_encoder(folder: Path) -> object:
    path = _weights(folder / "mobilenet.safetensors", nn.Linear(2, 1))
    return backbones.mobilenet_v1(0.125, weights=path)


@files("weights must", "small-cnn")
def weights_for_an_encoder_from_scratch(folder: Path) -> object:
    return backbones.create_encoder("small-cnn", weights=str(folder / "w.safetensors"))


@files("name must|name", "resnet5O")
def an_encoder_that_timm_does_not_know(folder: Path) -> object:
    return backbones.create_encoder("resnet5O")


@files("text must be 'stand-in'", "'clip'", "got .*klip")
def a_text_source_that_does_not_exist(folder: Path) -> object:
    return backbones.create_text_bank("klip", ["cat"])


@files("toco.pth", "checkpoint of ToCo", "missing", "it holds .*weight")
def a_checkpoint_of_another_system(folder: Path) -> object:
    torch.save(nn.Linear(2, 1).state_dict(), folder / "toco.pth")
    return training.read_toco_checkpoint(folder / "toco.pth")


@files("segmenter.safetensors", "no segmenter")
def weights_instead_of_a_segmenter(folder: Path) -> object:
    path = _weights(folder / "segmenter.safetensors", nn.Linear(2, 1))
    return segmenters.Segmenter.load(path)


@files(r"model\.safetensors", "'loda'", "load_loda reads it")
def a_model_of_images_and_texts_as_a_segmenter(folder: Path) -> object:
    segmenters.save_loda(folder / "model.safetensors", tiny_loda())
    return segmenters.Segmenter.load(folder / "model.safetensors")


@files(r"segmenter\.safetensors", "'large-fov'", r"Segmenter\.load reads it")
def a_segmenter_as_a_model_of_images_and_texts(folder: Path) -> object:
    views = {"scales": (1.0,), "flip": False, "refiner": "none", "labels_used": False}
    protocol = metrics.EvaluationProtocol(dataset="toy", split="val", num_images=1, **views)
    network = segmenters.SegmentationNetwork("small-cnn", num_classes=2, hidden_dim=4)
    path = folder / "segmenter.safetensors"
    segmenters.Segmenter(network, names=("cat",), protocol=protocol).save(path)
    return segmenters.load_loda(path)


@files(r"model\.safetensors", "whole|truncated|cannot be read|incomplete")
def a_truncated_model_of_images_and_texts(folder: Path) -> object:
    segmenters.save_loda(folder / "model.safetensors", tiny_loda())
    return segmenters.load_loda(_cut(folder / "model.safetensors"))


@files("model must be one of create_loda", "got something else")
def a_model_that_was_built_by_hand(folder: Path) -> object:
    words = backbones.SmallTextEncoder(["cat"], dim=4)
    model = segmenters.LoDAModel(tiny_encoder(), words, dim=4)
    return segmenters.save_loda(folder / "model.safetensors", model)


@files("segmenter.safetensors", "holds no", "load_pretrained_loda reads one")
def a_shared_model_of_images_and_texts_as_a_segmenter(folder: Path) -> object:
    segmenters.save_pretrained(tiny_loda(), folder / "shared")
    return segmenters.load_pretrained(folder / "shared")


@files("metrics must be a file of write_metrics", "got .*metrics.json")
def metrics_of_another_program_for_a_model_card(folder: Path) -> object:
    path = _write(folder / "metrics.json", '{"miou": 62.5}')
    return segmenters.save_pretrained(tiny_loda(), folder / "shared", metrics=path)


@files("README.md is there", "replace=True")
def a_model_card_over_one_that_a_person_wrote(folder: Path) -> object:
    _write(folder / "README.md", "Mine.")
    return segmenters.save_pretrained(tiny_loda(), folder)


@files("repo_id must be 'user/name'", "got 'pets'")
def a_repository_without_its_user(folder: Path) -> object:
    return segmenters.push_to_hub(tiny_loda(), "pets")


@files("vocabulary must be a file of word pieces", r"got '.*vocab\.txt'", "no such file")
def word_pieces_that_are_not_there(folder: Path) -> object:
    return segmenters.create_loda(text_encoder="bert-base", vocabulary=folder / "vocab.txt")


@files("words must be given for 'small-text'", "got none")
def an_encoder_of_words_without_words(folder: Path) -> object:
    return segmenters.create_loda()


@files("metrics.json", "write_metrics")
def metrics_of_another_program(folder: Path) -> object:
    return metrics.read_metrics(_write(folder / "metrics.json", '{"miou": 62.5}'))


@files("metrics.json", "JSON|write_metrics")
def broken_metrics(folder: Path) -> object:
    return metrics.read_metrics(_write(folder / "metrics.json", "{"))


@files("metrics.json", "write_metrics|not there|No such|no ")
def metrics_that_are_not_there(folder: Path) -> object:
    return metrics.read_metrics(folder / "metrics.json")


def _features(folder: Path, scale: float = 1.0) -> data.FeatureCache:
    torch.manual_seed(0)
    encoder = backbones.SmallCNN((2,), blocks=(0,))
    scenes = data.Scenes(size=1)
    quiet: list[str] = []
    return data.FeatureCache.build(
        scenes, encoder, folder / "uss", scales=(scale,), progress=quiet.append
    )


@files("uss must hold features made as those asked for", "got scales", "1.0", "2.0")
def features_of_another_scale(folder: Path) -> object:
    _features(folder)
    return _features(folder, scale=2.0)


@files("train_00000.safetensors must be a whole file of features")
def a_file_of_features_cut_short(folder: Path) -> object:
    cache = _features(folder)
    path = folder / "uss" / "train_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return cache["train_00000"]


@files("cache.json", "FeatureCache.build")
def a_cache_of_features_without_a_description(folder: Path) -> object:
    _write(folder / "uss" / "cache.json", "{}")
    return data.FeatureCache(folder / "uss")


def _cams(folder: Path, **settings: Any) -> data.CamStore:
    quiet: list[str] = []
    path, labels = folder / "cams", torch.tensor([1.0, 0.0])
    with data.CamStoreWriter(
        path, ["a"], ["cat", "dog"], progress=quiet.append, **settings
    ) as writer:
        if writer.todo:
            writer.write("a", torch.rand(2, 3, 3), labels, image_size=(24, 24))
    return data.CamStore(path)


@files("cams must hold maps made as those asked for", "got dtype 'uint8' instead of 'float16'")
def cams_of_another_precision(folder: Path) -> object:
    _cams(folder)
    return _cams(folder, dtype="float16")


@files("cams must hold maps made as those asked for", "got weights 'old' instead of 'new'")
def cams_of_other_weights(folder: Path) -> object:
    _cams(folder, about={"weights": "old"})
    return _cams(folder, about={"weights": "new"})


@files("shard-000-00000.safetensors must be a whole shard")
def a_shard_of_cams_cut_short(folder: Path) -> object:
    _cams(folder)
    path = folder / "cams" / "shard-000-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return data.CamStore(folder / "cams")


@files("store.json", "CamStoreWriter")
def a_store_of_cams_without_a_description(folder: Path) -> object:
    _write(folder / "cams" / "store.json", "{}")
    return data.CamStore(folder / "cams")


@files(r"lacks the maps of 1 of 2 images \('b'\)", "write the store to its end")
def a_store_of_cams_that_was_not_finished(folder: Path) -> object:
    return _cams(folder).maps(["a", "b"])


@files(
    "a.npy does not fit into the store", r"classes must be different and in \[0, 2\)", r"got \[20\]"
)
def cams_of_irn_of_more_classes(folder: Path) -> object:
    content = {"keys": [20], "cam": np.ones((1, 2, 2)), "high_res": np.ones((1, 8, 8))}
    np.save(folder / "a.npy", content)  # type: ignore[arg-type]
    return data.import_irn(folder, folder / "cams", ["cat", "dog"])


@files(
    "a.npy does not fit into the store", r"classes must be different and in \[0, 2\)", r"got \[20\]"
)
def cams_of_psa_of_more_classes(folder: Path) -> object:
    np.save(folder / "a.npy", {20: np.ones((8, 8))})  # type: ignore[arg-type]
    return data.import_psa(folder, folder / "cams", ["cat", "dog"])


@files("a.npy must hold features of shape", "(512,)")
def features_of_a_whole_image(folder: Path) -> object:
    np.save(folder / "a.npy", np.zeros(512, np.float16))
    return data.read_cause_features(folder / "a.npy")


@files("maps must hold one 'features' map", "2 images", "got 1")
def a_cache_of_maps_of_another_data_set(folder: Path) -> object:
    images = data.FolderDataset(_folder(folder), None)
    samples = data.Augmented(images, lambda sample, generator: sample)
    cached: list[Tensor] = [torch.zeros(2, 1, 1)]
    return data.WithMaps(samples, {"features": cached})
