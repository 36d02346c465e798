"""Data sets, weak labels, transforms that record their geometry, and exact resumption."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_blocks.data.ade20k import ADE20K
    from wsss_blocks.data.auto_augment import AutoAugment
    from wsss_blocks.data.cam_exchange import export_irn, export_psa, import_irn, import_psa
    from wsss_blocks.data.cam_store import (
        CamStore,
        CamStoreEstimate,
        StoredCam,
        estimate_cam_store,
    )
    from wsss_blocks.data.cam_store_writer import CamStoreWriter
    from wsss_blocks.data.cause import SavedFeatures, read_cause_features
    from wsss_blocks.data.class_maps import ClassMaps, read_class_maps, write_class_maps
    from wsss_blocks.data.classes import CLASS_TABLES, ClassTable, check_split_size, class_table
    from wsss_blocks.data.coco import COCO
    from wsss_blocks.data.coco_layout import write_coco_layout
    from wsss_blocks.data.coco_masks import CocoMasks, build_coco_masks
    from wsss_blocks.data.coco_stuff import COCOObject, COCOStuff
    from wsss_blocks.data.crops import CenterCrop, RandomCrop, RandomResizedCrop
    from wsss_blocks.data.doctor import Examination, Finding, SplitCounts, examine
    from wsss_blocks.data.export import ExportedMasks, export_masks
    from wsss_blocks.data.feature_cache import DiskEstimate, FeatureCache
    from wsss_blocks.data.folder import FolderDataset
    from wsss_blocks.data.frozen_features import dense_features
    from wsss_blocks.data.geometry import Geometry, replay
    from wsss_blocks.data.image_text import ImageTextPairs, RandomCaption
    from wsss_blocks.data.image_text_shards import ImageTextShards
    from wsss_blocks.data.images import read_image, read_mask, write_mask
    from wsss_blocks.data.loader import step_loader
    from wsss_blocks.data.maps import MapFiles, WithMaps, compute_maps
    from wsss_blocks.data.names import (
        COCO_NAMES,
        DIGIT_NAMES,
        VOC_NAMES,
        VOC_SPOKEN_NAMES,
        voc_palette,
    )
    from wsss_blocks.data.opening import WeakDataset, open_dataset
    from wsss_blocks.data.pascal_context import PascalContext
    from wsss_blocks.data.photometric import (
        ChannelPermutation,
        ColorJitter,
        GaussianBlur,
        RandomGrayscale,
    )
    from wsss_blocks.data.pseudo_masks import WithPseudoMasks
    from wsss_blocks.data.rand_augment import RandAugment
    from wsss_blocks.data.recipe import training_transform
    from wsss_blocks.data.sample import Sample as Sample
    from wsss_blocks.data.sample import Transform as Transform
    from wsss_blocks.data.sample import collate, new_sample
    from wsss_blocks.data.sampling import Augmented, StepSampler
    from wsss_blocks.data.sbd import VocAug, build_voc_aug
    from wsss_blocks.data.scenes import Scenes
    from wsss_blocks.data.shard_loading import shard_loader
    from wsss_blocks.data.shards import ShardList, find_shards
    from wsss_blocks.data.text_augmentation import WordAugmentation, augment_words
    from wsss_blocks.data.transforms import (
        AddView,
        Compose,
        RandomHorizontalFlip,
        RandomResize,
        RandomScale,
        Resize,
    )
    from wsss_blocks.data.usable import UsableImages, usable_images
    from wsss_blocks.data.voc import VOC2012
    from wsss_blocks.data.voc_layout import write_voc_layout
    from wsss_blocks.data.weak_labels import WeakLabels

__all__ = [
    "ADE20K",
    "CLASS_TABLES",
    "COCO",
    "COCO_NAMES",
    "DIGIT_NAMES",
    "VOC2012",
    "VOC_NAMES",
    "VOC_SPOKEN_NAMES",
    "AddView",
    "Augmented",
    "AutoAugment",
    "COCOObject",
    "COCOStuff",
    "CamStore",
    "CamStoreEstimate",
    "CamStoreWriter",
    "CenterCrop",
    "ChannelPermutation",
    "ClassMaps",
    "ClassTable",
    "CocoMasks",
    "ColorJitter",
    "Compose",
    "DiskEstimate",
    "Examination",
    "ExportedMasks",
    "FeatureCache",
    "Finding",
    "FolderDataset",
    "GaussianBlur",
    "Geometry",
    "ImageTextPairs",
    "ImageTextShards",
    "MapFiles",
    "PascalContext",
    "RandAugment",
    "RandomCaption",
    "RandomCrop",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResize",
    "RandomResizedCrop",
    "RandomScale",
    "Resize",
    "SavedFeatures",
    "Scenes",
    "ShardList",
    "SplitCounts",
    "StepSampler",
    "StoredCam",
    "UsableImages",
    "VocAug",
    "WeakDataset",
    "WeakLabels",
    "WithMaps",
    "WithPseudoMasks",
    "WordAugmentation",
    "augment_words",
    "build_coco_masks",
    "build_voc_aug",
    "check_split_size",
    "class_table",
    "collate",
    "compute_maps",
    "dense_features",
    "estimate_cam_store",
    "examine",
    "export_irn",
    "export_masks",
    "export_psa",
    "find_shards",
    "import_irn",
    "import_psa",
    "new_sample",
    "open_dataset",
    "read_cause_features",
    "read_class_maps",
    "read_image",
    "read_mask",
    "replay",
    "shard_loader",
    "step_loader",
    "training_transform",
    "usable_images",
    "voc_palette",
    "write_class_maps",
    "write_coco_layout",
    "write_mask",
    "write_voc_layout",
]

_HOMES = {
    "ade20k": ("ADE20K",),
    "auto_augment": ("AutoAugment",),
    "cam_exchange": ("export_irn", "export_psa", "import_irn", "import_psa"),
    "cam_store": ("CamStore", "CamStoreEstimate", "StoredCam", "estimate_cam_store"),
    "cam_store_writer": ("CamStoreWriter",),
    "cause": ("SavedFeatures", "read_cause_features"),
    "class_maps": ("ClassMaps", "read_class_maps", "write_class_maps"),
    "classes": ("CLASS_TABLES", "ClassTable", "check_split_size", "class_table"),
    "coco": ("COCO",),
    "coco_layout": ("write_coco_layout",),
    "coco_masks": ("CocoMasks", "build_coco_masks"),
    "coco_stuff": ("COCOObject", "COCOStuff"),
    "crops": ("CenterCrop", "RandomCrop", "RandomResizedCrop"),
    "doctor": ("Examination", "Finding", "SplitCounts", "examine"),
    "export": ("ExportedMasks", "export_masks"),
    "feature_cache": ("DiskEstimate", "FeatureCache"),
    "folder": ("FolderDataset",),
    "frozen_features": ("dense_features",),
    "geometry": ("Geometry", "replay"),
    "image_text": ("ImageTextPairs", "RandomCaption"),
    "image_text_shards": ("ImageTextShards",),
    "images": ("read_image", "read_mask", "write_mask"),
    "loader": ("step_loader",),
    "maps": ("MapFiles", "WithMaps", "compute_maps"),
    "names": ("COCO_NAMES", "DIGIT_NAMES", "VOC_NAMES", "VOC_SPOKEN_NAMES", "voc_palette"),
    "opening": ("WeakDataset", "open_dataset"),
    "pascal_context": ("PascalContext",),
    "photometric": ("ChannelPermutation", "ColorJitter", "GaussianBlur", "RandomGrayscale"),
    "pseudo_masks": ("WithPseudoMasks",),
    "rand_augment": ("RandAugment",),
    "recipe": ("training_transform",),
    "sample": ("Sample", "Transform", "collate", "new_sample"),
    "sampling": ("Augmented", "StepSampler"),
    "sbd": ("VocAug", "build_voc_aug"),
    "scenes": ("Scenes",),
    "shard_loading": ("shard_loader",),
    "shards": ("ShardList", "find_shards"),
    "text_augmentation": ("WordAugmentation", "augment_words"),
    "transforms": (
        "AddView",
        "Compose",
        "RandomHorizontalFlip",
        "RandomResize",
        "RandomScale",
        "Resize",
    ),
    "usable": ("UsableImages", "usable_images"),
    "voc": ("VOC2012",),
    "voc_layout": ("write_voc_layout",),
    "weak_labels": ("WeakLabels",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
