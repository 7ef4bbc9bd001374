"""Every evaluation set in its official layout, with two or three tiny images."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import scipy.io
import tensorflow_datasets as tfds

from tests.data.image_files import encode, photo

SHAPE = (2, 3)


def write_photo(path: Path, seed: int = 0, shape=SHAPE, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    path.write_bytes(encode(photo(*shape, seed), kind, **options))


def write_mask(path: Path, values, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array(values, np.uint8)
    image = PIL.Image.new("P" if palette else "L", values.shape[::-1])
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.putdata(values.ravel().tolist())
    image.save(path)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def voc(data: Path) -> None:
    root = data / "VOCdevkit/VOC2012"
    write_text(root / "ImageSets/Segmentation/val.txt", "2007_000033\n2007_000042\n")
    masks = {"2007_000033": [[0, 1, 20], [255, 11, 0]], "2007_000042": [[15] * 3] * 2}
    for seed, (name, values) in enumerate({**masks, "2007_000032": [[3] * 3] * 2}.items()):
        write_photo(root / f"JPEGImages/{name}.jpg", seed)
        write_mask(root / f"SegmentationClass/{name}.png", values, palette=True)


def context(data: Path) -> None:
    root = data / "VOCdevkit/VOC2010"
    write_text(root / "ImageSets/SegmentationContext/val.txt", "2008_000002\n2008_000003\n")
    for seed, name in enumerate(("2008_000002", "2008_000003")):
        write_photo(root / f"JPEGImages/{name}.jpg", seed)
        values = [[0, 1, 59], [37, 36, 0]]
        write_mask(root / f"SegmentationClassContext/{name}.png", values)


def context_mat(data: Path) -> None:
    root = data / "VOCdevkit/VOC2010"
    write_text(root / "ImageSets/Main/val.txt", "2008_000002\n2008_000003\n2008_000004\n")
    for seed, name in enumerate(("2008_000002", "2008_000003", "2008_000009")):
        write_photo(root / f"JPEGImages/{name}.jpg", seed)
        values = np.array([[1, 2, 458], [284, 255, 459]], np.uint16)
        (root / "trainval").mkdir(exist_ok=True)
        scipy.io.savemat(root / f"trainval/{name}.mat", {"LabelMap": values})


def coco_photos(data: Path) -> None:
    for seed, name in enumerate(("000000000139", "000000000285")):
        write_photo(data / f"coco/val2017/{name}.jpg", seed, (4, 6))


def coco_maps(data: Path, photos: str = "", maps: str = "coco/stuffthingmaps/val2017") -> None:
    coco_photos(data)
    if photos:
        (data / photos).parent.mkdir(parents=True)
        (data / "coco/val2017").rename(data / photos)
    values = [[0, 89, 91, 181, 255, 12]] * 4  # person, toothbrush, banner, wood, none, stop sign
    for name in ("000000000139", "000000000285"):
        write_mask(data / maps / f"{name}.png", values)


def instance(category, segmentation, image=139, crowd=0):
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


def rectangle(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


COCO_INSTANCES = (
    instance(47, rectangle(0, 0, 1, 1)),  # a cup on the table, before it in the file
    instance(67, rectangle(0, 0, 3, 4)),
    # Run lengths go down the columns of 4, outside first: two pixels of a toothbrush, the upper
    # of which a crowd region claims too, and another crowd in the last column.
    instance(90, {"counts": [12, 2, 10], "size": [4, 6]}),
    instance(1, {"counts": [12, 1, 11], "size": [4, 6]}, crowd=1),
    instance(1, {"counts": [20, 4], "size": [4, 6]}, crowd=1),
)


def coco_instances(data: Path, instances=COCO_INSTANCES) -> None:
    coco_photos(data)
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": 4, "width": 6}
        for number in (139, 285)
    ]
    content = {"images": images, "annotations": list(instances), "categories": []}
    write_text(data / "coco/annotations/instances_val2017.json", json.dumps(content))


def cityscapes(data: Path, suffix: str = "labelIds") -> None:
    root = data / "cityscapes"
    ids = {"labelIds": [[7, 33, 0], [9, 26, 3]], "labelTrainIds": [[0, 18, 255], [255, 13, 255]]}
    for seed, stem in enumerate(
        ("frankfurt/frankfurt_000000_000294", "lindau/lindau_000000_000019")
    ):
        write_photo(root / f"leftImg8bit/val/{stem}_leftImg8bit.png", seed)
        write_mask(root / f"gtFine/val/{stem}_gtFine_{suffix}.png", ids[suffix])


def ade20k(data: Path) -> None:
    root = data / "ADEChallengeData2016"
    for seed, name in enumerate(("ADE_val_00000001", "ADE_val_00000002")):
        write_photo(root / f"images/validation/{name}.jpg", seed)
        write_mask(root / f"annotations/validation/{name}.png", [[0, 1, 150], [13, 128, 0]])


def folder(data: Path, names: str = "background\nred panda\nsky\n") -> None:
    root = data / "folder"
    write_text(root / "classes.txt", names)
    write_photo(root / "images/b.jpg")
    write_photo(root / "images/a.png")
    write_mask(root / "masks/a.png", [[0, 1, 2], [255, 1, 1]])
    write_mask(root / "masks/b.png", [[2] * 3] * 2, palette=True)


def imagenet_folders(data: Path) -> None:
    """Three images where they really belong."""
    write_photo(data / "imagenet/val/n15075141/ILSVRC2012_val_00001079.JPEG")  # the last synset
    write_photo(data / "imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG")  # the first
    write_photo(data / "imagenet/val/n02012849/ILSVRC2012_val_00000389.JPEG")  # crane bird


def imagenet_flat(data: Path, photos: str = "val") -> None:
    """The same three images."""
    imagenet_folders(data)
    folders = data / "imagenet/val"
    for file in list(folders.glob("*/*")):
        (data / "imagenet" / photos).mkdir(exist_ok=True)
        file.rename(data / "imagenet" / photos / file.name)
        file.parent.rmdir()


def imagenet_train(data: Path) -> None:
    """One image of each class of `imagenet_folders`."""
    for synset in ("n15075141", "n01440764", "n02012849"):
        write_photo(data / f"imagenet/train/{synset}/{synset}_1.JPEG")


def image_folder(data: Path, split: str = "") -> None:
    write_photo(data / "image_folder" / split / "red_panda/1.jpg")
    write_photo(data / "image_folder" / split / "tabby cat/2.png")


def image_folder_splits(data: Path) -> None:
    for split in ("train", "val"):
        image_folder(data, split)


def karpathy(table: Path, photos: Path, names: tuple[str, ...]) -> None:
    """All but the last image are of the test split."""
    splits = ["test"] * (len(names) - 1) + ["train"]
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f"A photo {i} of {name}. "} for i in range(5)],
        }
        for name, split in zip(names, splits, strict=True)
    ]
    write_text(table, json.dumps({"images": images}))
    for name in names:
        write_photo(photos / name)


def coco_retrieval(data: Path) -> None:
    names = ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000060623.jpg", "other.jpg")
    karpathy(data / "coco/dataset_coco.json", data / "coco/val2014", names)


def coco_captions(data: Path) -> None:
    coco_photos(data)
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (139, 285)]
    annotations = [
        {"image_id": n, "caption": f"Caption {i} of {n}"} for i in range(2) for n in (285, 139)
    ]
    content = {"images": images, "annotations": annotations}
    write_text(data / "coco/annotations/captions_val2017.json", json.dumps(content))


def flickr30k(data: Path) -> None:
    root = data / "flickr30k"
    names = ("1007129816.jpg", "1009434119.jpg", "1000092795.jpg")
    karpathy(root / "dataset_flickr30k.json", root / "flickr30k-images", names)


def flickr8k(data: Path) -> None:
    root = data / "Flickr8k"
    names = ("1056338697_4f7d7ce270.jpg", "106490881_5a2dd9b7bd.jpg", "1000268201_693b08cb0e.jpg")
    karpathy(root / "dataset_flickr8k.json", root / "Flicker8k_Dataset", names)


def flickr8k_table(data: Path) -> None:
    rows = ["image,caption", 'a.jpg,"A dog, running ."', "a.jpg,A brown dog .", "b.jpg,A child ."]
    write_text(data / "flickr8k/captions.txt", "\n".join(rows))
    write_photo(data / "flickr8k/Images/a.jpg")
    write_photo(data / "flickr8k/Images/b.jpg")


class Tfds(tfds.core.GeneratorBasedBuilder):
    """A TFDS set of given examples."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data_dir, features, split, examples):
        self._given = (features, split, examples)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self):
        features = tfds.features.FeaturesDict(self._given[0])
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {self._given[1]: enumerate(self._given[2])}

    def _generate_examples(self):
        raise NotImplementedError


def write_tfds(folder: Path, features, split: str, examples) -> None:
    """Writes a TFDS set; `folder` is that of its version."""
    builder = Tfds(folder.parent / "build", features, split, examples)
    builder.download_and_prepare()
    Path(builder.data_dir).rename(folder)


def png(values) -> io.BytesIO:
    """As a file; TFDS needs TensorFlow to encode arrays."""
    return io.BytesIO(encode(np.array(values, np.uint8), "PNG"))


BLACK = np.zeros((*SHAPE, 3), np.uint8)


def imagenet_tfds(data: Path) -> None:
    synsets = ["n01440764", "n02012849", "n15075141"]
    features = {
        "image": tfds.features.Image(encoding_format="png"),
        "label": tfds.features.ClassLabel(names=synsets),
    }
    examples = [{"image": png(BLACK), "label": label} for label in (0, 1, 2)]
    write_tfds(data / "imagenet2012/5.1.0", features, "validation", examples)


def coco_tfds(data: Path) -> None:
    captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
    features = {"image": tfds.features.Image(encoding_format="png"), "captions": captions}
    texts = [{"id": i, "text": f"Caption {i}"} for i in range(5)]
    examples = [{"image": png(BLACK), "captions": texts} for _ in range(2)]
    write_tfds(data / "coco_captions/2014/1.1.0", features, "test", examples)


def cityscapes_tfds(data: Path) -> None:
    features = {
        "image_left": tfds.features.Image(encoding_format="png"),
        "segmentation_label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    }
    masks = [[[7, 33, 0], [9, 26, 3]], [[11, 11, 11]] * 2]
    examples = [{"image_left": png(BLACK), "segmentation_label": png(mask)} for mask in masks]
    folder = data / "cityscapes/semantic_segmentation/1.0.0"
    write_tfds(folder, features, "validation", examples)
