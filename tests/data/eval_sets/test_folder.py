"""Sets of one's own, drawn anew in the forms that tools write."""

import json

import numpy as np
import PIL.Image
import pytest

from groupvit_jax.data.eval_sets import open_benchmark
from groupvit_jax.data.eval_sets.mask_values import voc_colours
from tests.data.eval_sets import miniatures

# Classes of 4 x 6 pixels: 0 everywhere but in two corners.
MAP = np.zeros((4, 6), np.int32)
MAP[:2, :3], MAP[2:, 4:] = 1, 2
IGNORED = 255
RED, BLUE = (200, 10, 10), (10, 10, 200)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    image.save(path)


def colours_of(values, colours):
    return np.array(colours, np.uint8)[values]


def palette_image(values, colours):
    image = PIL.Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


def draw(root, mask, classes="background\nperson\ngrass\n", stem="a", photo=".jpg", suffix=".png"):
    """Draws a set of one photo; returns its folder."""
    if classes is not None:
        miniatures.write_text(root / "classes.txt", classes)
    miniatures.write_photo(root / f"images/{stem}{photo}", shape=MAP.shape)
    save(root / f"masks/{stem}{suffix}", mask)
    return root


INDICES = MAP.astype(np.uint8)
GIVEN = "background: 0 0 0\nperson: 200 10 10\ngrass: 10 10 200\n"
LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nperson:200,10,10::\ngrass:10,10,200::"
)
FORMS = {
    "indices": (INDICES, "background\nperson\ngrass\n"),
    "palette": (palette_image(MAP, [(9, 9, 9), RED, BLUE]), "background\nperson\ngrass\n"),
    "16 bit": (MAP.astype(np.uint16), "background\nperson\ngrass\n"),
    "16 bit, large values": ((1000 * MAP).astype(np.uint16), "bg: 0\nperson: 1000\ngrass: 2000"),
    "three equal channels": (np.stack([INDICES] * 3, -1), "background\nperson\ngrass\n"),
    "colour table": (colours_of(MAP, [(0, 0, 0), RED, BLUE]), GIVEN),
    "colours with transparency": (
        PIL.Image.fromarray(colours_of(MAP, [(0, 0, 0), RED, BLUE])).convert("RGBA"),
        GIVEN,
    ),
    "palette, colour table": (palette_image(2 - MAP, [BLUE, RED, (0, 0, 0)]), GIVEN),
    "CVAT's labelmap": (colours_of(MAP, [(0, 0, 0), RED, BLUE]), LABELMAP),
    "Pascal VOC's colours": (colours_of(MAP, voc_colours(3)), "background\nperson\ngrass\n"),
    "values given": ((100 * MAP).astype(np.uint8), "background: 0\nperson: 100\ngrass: 200"),
    "blank lines and comments count": (2 * INDICES, "Background\n\nperson\n#\ngrass"),
    "background anywhere, in any spelling": ((INDICES + 2) % 3, "person\ngrass\n_Back-Ground_"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_masks_gives_the_same_classes(form, tmp_path):
    mask, classes = FORMS[form]
    opened = open_benchmark("folder", draw(tmp_path, mask, classes))
    assert opened.all_names == ("background", "person", "grass")
    np.testing.assert_array_equal(opened.source[0].mask, MAP)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif"])
def test_masks_in_every_lossless_format(suffix, tmp_path):
    opened = open_benchmark("folder", draw(tmp_path, INDICES, suffix=suffix))
    np.testing.assert_array_equal(opened.source[0].mask, MAP)


def test_labels_from_one_leave_zero_unlabelled_and_say_so(tmp_path):
    opened = open_benchmark("folder", draw(tmp_path, INDICES, "person\ngrass\n"))
    assert opened.class_names == ("person", "grass")
    assert not opened.has_background
    expected = np.where(MAP == 0, IGNORED, MAP - 1)
    np.testing.assert_array_equal(opened.source[0].mask, expected)
    assert "labels count from 1; 0 is ignored" in opened.summary


def test_a_class_called_unlabelled_and_255_are_ignored(tmp_path):
    values = INDICES.copy()
    values[3, 0] = IGNORED
    opened = open_benchmark("folder", draw(tmp_path, values, "Unlabeled\nperson\ngrass\n"))
    expected = np.where(MAP == 0, IGNORED, MAP - 1)
    np.testing.assert_array_equal(opened.source[0].mask, expected)
    assert "ignored  (value 0, 255)" in opened.summary


REFUSED = {
    "a class twice": (INDICES, "crane\nwall\nCrane\n", r"classes.txt: 'Crane' found twice"),
    "a synonym twice": (INDICES, "bg\nman|person\nPerson", r"classes.txt: 'Person' found twice"),
    "a value twice": (INDICES, "bg: 0\na: 1\nb: 1\n", r"classes.txt: '1' found twice"),
    "two backgrounds": (INDICES, "bg\nbackground\nx\n", r"'background' found twice"),
    "some values only": (INDICES, "bg: 0\na: 1\nb\n", r"2 of 3 classes with a value found"),
    "all ignored": (np.full((4, 6), 255, np.uint8), "a\nb\n", r"nothing is labelled: all pixels"),
    "background only": (np.zeros((4, 6), np.uint8), "bg\nb\n", r"nothing is labelled: .* backgr"),
    "0 and 255": (255 * (INDICES > 0), "background\nlesion", r"only 0 and 255 found, and 255 would "
                  r"be ignored: if 255 is 'lesion', write 'lesion: 255'"),
    "a value without a class": (INDICES * 4, "background\na\nb", r"without a class found in the "
                                r"masks: 4 \(25.0 % of the pixels, first in a.png\), 8"),
    "a value on a comment's line": (INDICES, "background\n# people\nperson", r"without a class "
                                    r"found in the masks: 1 .*blank ones and comments too"),
    "colours without a table": (colours_of(MAP, [(0, 0, 0), RED, BLUE]), "bg\na\nb",
                                r"\(200 10 10\) on 25.0 % .*expected a colour for each class"),
    "a table of colours for indices": (INDICES, GIVEN, r"\(? ?without a class|no class|colours"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_give_a_wrong_figure_is_refused(case, tmp_path):
    mask, classes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        open_benchmark("folder", draw(tmp_path, mask.astype(np.uint8), classes))


def test_0_and_255_with_their_classes_are_evaluated(tmp_path):
    binary = (255 * (MAP == 1)).astype(np.uint8)
    opened = open_benchmark("folder", draw(tmp_path, binary, "background: 0\nlesion: 255\n"))
    np.testing.assert_array_equal(opened.source[0].mask, MAP == 1)


@pytest.mark.parametrize("photo", [".tif", ".avif", ".webp", ".png", ".bmp", ".gif", ".JPEG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_photos_of_every_format_are_turned_upright_with_their_masks(photo, orientation, tmp_path):
    root = draw(tmp_path, INDICES)
    (root / "images/a.jpg").unlink()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {} if photo in (".bmp", ".gif") else {"exif": exif}
    PIL.Image.new("RGB", MAP.shape[::-1], (200, 0, 0)).save(root / f"images/a{photo}", **options)
    image, mask = open_benchmark("folder", root).source[0]
    turned = orientation == 6 and bool(options)
    assert image.shape == ((6, 4, 3) if turned else (4, 6, 3))
    np.testing.assert_array_equal(mask, np.rot90(MAP, -1) if turned else MAP)


def test_nested_folders_suffixes_and_what_is_left_out(tmp_path):
    for stem in ("val/x", "train/x"):
        draw(tmp_path, INDICES, stem=stem, suffix="_mask.png")
    (tmp_path / "masks/val/x_mask.png").rename(tmp_path / "masks/val/x_mask.png.old")
    save(tmp_path / "masks/val/x_mask.png", np.full((4, 6), 2, np.uint8))
    miniatures.write_text(tmp_path / "images/notes.txt", "")
    miniatures.write_text(tmp_path / "images/b.heic", "")
    save(tmp_path / "masks/other_mask.png", INDICES)
    opened = open_benchmark("folder", tmp_path)
    assert [opened.source.locate(i).split("images/")[1] for i in range(2)] == [
        "train/x.jpg",
        "val/x.jpg",
    ]
    np.testing.assert_array_equal(opened.source[0].mask, MAP)
    assert (opened.source[1].mask == 2).all()
    assert "3 files left out, no photo and no mask of one: b.heic, notes.txt, other_mask.png" in (
        opened.summary
    )


def test_photo_without_a_mask_and_two_of_a_name_are_refused(tmp_path):
    draw(tmp_path, INDICES)
    miniatures.write_photo(tmp_path / "images/b.jpg")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 photos without a mask found \(b.jpg\)"):
        open_benchmark("folder", tmp_path)
    (tmp_path / "images/b.jpg").rename(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"a.jpg, a.png: several photos of one name"):
        open_benchmark("folder", tmp_path)


def test_a_mask_that_cannot_be_read_is_named_and_the_others_are_counted(tmp_path):
    draw(tmp_path, INDICES)
    miniatures.write_photo(tmp_path / "images/b.jpg", shape=MAP.shape)
    (tmp_path / "masks/b.png").write_bytes(b"no png")
    opened = open_benchmark("folder", tmp_path)
    assert "1 of 2 masks can't be read, e.g. " in opened.summary
    assert "masks/b.png" in opened.summary
    np.testing.assert_array_equal(opened.source[0].mask, MAP)
    with pytest.raises(ValueError, match=r"masks/b\.png"):
        opened.source[1]
    (tmp_path / "masks/a.png").write_bytes(b"no png")
    with pytest.raises(ValueError, match=r"masks/a\.png"):
        open_benchmark("folder", tmp_path)


def test_summary_has_photos_classes_and_shares(tmp_path):
    values = INDICES.copy()
    values[3, 0] = IGNORED
    opened = open_benchmark("folder", draw(tmp_path, values, "bg\nperson|man\ngrass\nsky\n"))
    lines = opened.summary.splitlines()
    assert lines[0] == f"{tmp_path}: 1 photos, 4 classes"
    assert lines[1:] == [
        "   54.2 %  background  (value 0)",
        "   25.0 %  person  (value 1)",
        "   16.7 %  grass  (value 2)",
        "  in no mask: sky",
        "    4.2 %  ignored  (value 255)",
    ]
    assert opened.class_names == ("person|man", "grass", "sky")


def test_a_class_of_few_pixels_is_not_shown_as_absent(tmp_path):
    values = np.zeros((60, 60), np.uint8)
    values[0, 0] = 1
    draw(tmp_path, values, "bg\nant\n")
    miniatures.write_photo(tmp_path / "images/a.jpg", shape=values.shape)
    lines = open_benchmark("folder", tmp_path).summary.splitlines()
    assert lines[1:3] == ["  100.0 %  background  (value 0)", "   <0.1 %  ant  (value 1)"]


TOML = """
name = "lesions"
images = "photos"
masks = "labels"
image_suffix = "_rgb"
mask_suffix = "_gt"
background = "healthy"
ignored = [9]
background_threshold = 0.4
prompts = ["a scan of a {}."]
classes = {healthy = 0, person = 1, grass = 2}
"""
AS_JSON = json.dumps(
    {
        "name": "lesions", "images": "photos", "masks": "labels", "image_suffix": "_rgb",
        "mask_suffix": "_gt", "background": "healthy", "ignored": [9],
        "background_threshold": 0.4, "prompts": ["a scan of a {}."],
        "classes": {"healthy": 0, "person": 1, "grass": 2},
    }
)  # fmt: skip


@pytest.mark.parametrize(("file", "text"), [("mine.toml", TOML), ("set.json", AS_JSON)])
def test_description_of_a_set(file, text, tmp_path):
    values = INDICES.copy()
    values[3, 0] = 9
    miniatures.write_photo(tmp_path / "photos/1_rgb.jpg", shape=MAP.shape)
    save(tmp_path / "labels/1_gt.png", values)
    miniatures.write_text(tmp_path / file, text)
    place = tmp_path if file == "set.json" else tmp_path / file
    opened = open_benchmark("folder", place)
    assert (opened.name, opened.background_threshold) == ("lesions", 0.4)
    assert opened.prompts == ("a scan of a {}.",)
    assert opened.class_names == ("person", "grass")
    assert opened.has_background
    np.testing.assert_array_equal(opened.source[0].mask, np.where(values == 9, 255, MAP))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask = 'x'", r"set.toml: field 'mask' found, expected some of name, images"),
        ("prompts = 'x'", r"set.toml: prompts: 'x' found, expected a list of texts"),
        ("classes = {a = 'red'}", r"value 'red' found, expected 0 to 65535 or a colour"),
        ("a = 1\na = 2", r"set.toml: Cannot overwrite"),
        ("background = 'sky'", r"background 'sky' is none of the classes"),
    ],
)
def test_wrong_description_is_named(text, message, tmp_path):
    draw(tmp_path, INDICES)
    miniatures.write_text(tmp_path / "set.toml", text)
    with pytest.raises(ValueError, match=message):
        open_benchmark("folder", tmp_path)


def coco(root, name="masks.json", categories=("person", "grass"), photo="a.jpg"):
    miniatures.write_photo(root / "images/a.jpg", shape=MAP.shape)
    content = {
        "images": [{"id": 7, "file_name": photo, "height": 4, "width": 6}],
        "categories": [{"id": i, "name": n} for i, n in enumerate(categories)],
        "annotations": [
            {"image_id": 7, "category_id": 0, "segmentation": miniatures.rectangle(0, 0, 3, 2)},
            {"image_id": 7, "category_id": 1, "segmentation": miniatures.rectangle(4, 2, 6, 4)},
        ],
    }
    miniatures.write_text(root / name, json.dumps(content))
    return root


@pytest.mark.parametrize("name", ["instances.json", "train/_annotations.coco.json"])
def test_coco_json_is_a_set_with_background(name, tmp_path):
    opened = open_benchmark("folder", coco(tmp_path, name))
    assert opened.all_names == ("background", "person", "grass")
    np.testing.assert_array_equal(opened.source[0].mask, MAP)
    assert "58.3 %  background  (value none)" in opened.summary
    assert "25.0 %  person  (value 0)" in opened.summary  # the id in the file


@pytest.mark.parametrize(
    ("file", "photos"),
    [
        ("annotations/instances_val2017.json", "val2017"),  # as COCO has them
        ("instances_val2017.json", "val2017"),
        ("valid/_annotations.coco.json", "valid"),  # as Roboflow has them
        ("_annotations.coco.json", "."),
    ],
)
def test_photos_of_coco_json_are_found_where_its_tools_put_them(file, photos, tmp_path):
    coco(tmp_path, file)
    (tmp_path / photos).mkdir(exist_ok=True)
    (tmp_path / "images/a.jpg").rename(tmp_path / photos / "a.jpg")
    (tmp_path / "images").rmdir()
    opened = open_benchmark("folder", tmp_path)
    np.testing.assert_array_equal(opened.source[0].mask, MAP)
    assert "left out" not in opened.summary


def test_one_of_several_coco_files_has_to_be_named(tmp_path):
    for name in ("train", "val"):
        coco(tmp_path, f"annotations/instances_{name}.json")
    with pytest.raises(ValueError, match=r"2 files of COCO's instances found \(annotations/inst"):
        open_benchmark("folder", tmp_path)


def test_largest_photo_is_a_setting_of_the_set(tmp_path):
    draw(tmp_path / "a", INDICES)
    coco(tmp_path / "b", "instances.json")
    for root in (tmp_path / "a", tmp_path / "b"):
        miniatures.write_text(root / "set.toml", "megapixels = 0.00002")
        with pytest.raises(ValueError, match=r"a.jpg: jpeg of 4x6 .* the limit is 0\.0"):
            open_benchmark("folder", root).source[0]
        miniatures.write_text(root / "set.toml", "megapixels = 0.00003")
        assert open_benchmark("folder", root).source[0].image.shape == (4, 6, 3)


def test_coco_json_with_a_list_of_classes_and_without_background(tmp_path):
    coco(tmp_path)
    miniatures.write_text(tmp_path / "set.toml", "masks = 'masks.json'\nclasses = ['lawn|grass']")
    opened = open_benchmark("folder", tmp_path)
    assert (opened.class_names, opened.has_background) == (("lawn|grass",), False)
    np.testing.assert_array_equal(opened.source[0].mask, np.where(MAP == 2, 0, IGNORED))


def test_coco_json_that_cannot_be_evaluated_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"1 of 1 photos not found in .*\(b.jpg\)"):
        open_benchmark("folder", coco(tmp_path / "a", "instances.json", photo="b.jpg"))
    root = coco(tmp_path / "b", "instances.json")
    miniatures.write_text(root / "classes.txt", "background\nsky\n")
    with pytest.raises(ValueError, match=r"'sky' has 0 categories in .*expected one of person"):
        open_benchmark("folder", root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_lists_of_classes_in_any_encoding(encoding, tmp_path):
    draw(tmp_path, INDICES, None)
    (tmp_path / "classes.txt").write_bytes(
        "background\r\nM\u00e4dchen\r\ngrass\r\n".encode(encoding)
    )
    assert open_benchmark("folder", tmp_path).class_names == ("M\u00e4dchen", "grass")
