import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.segmenter import Segmenter
from launch import segment
from tests.data.image_files import photo
from tests.interop import weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "export"
    save_pretrained(path, weights.random_pretrained(tiny.get_config().model), "safetensors")
    return path


@pytest.fixture
def photos(tmp_path):
    """Two folders that both hold an a.png."""
    for seed, name in enumerate(("one/a.png", "one/b.jpg", "two/a.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(40, 60, seed)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def run(checkpoint, output, *arguments):
    flags = [f"--checkpoint={checkpoint}", f"--output={output}", *map(str, arguments)]
    return segment.main(segment.parse_flags(["segment", *flags]))


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_every_image_gets_its_pictures_and_mask(checkpoint, photos, tmp_path, capsys):
    output = tmp_path / "new" / "output"
    assert run(checkpoint, output, "--labels=dog, big tree", "--background", photos) == 0
    endings = ("groups", "labels", "mask", "side")
    expected = [f"{name}_{ending}.png" for name in ("a", "a_2", "b") for ending in endings]
    assert names_in(output) == sorted([*expected, "labels.json"])
    printed = capsys.readouterr()
    assert "segmented 3 of 3 images" in printed.out
    assert f"{photos}: 1 files left out, no images: notes.txt" in printed.err
    found = json.loads((output / "labels.json").read_text())
    assert found["labels"] == ["background", "dog", "big tree"]
    for name, entry in found["images"].items():
        source = cv2.imread(entry["file"])
        mask = np.asarray(Image.open(output / f"{name}_mask.png"))
        assert mask.shape == source.shape[:2]
        for index, label in enumerate(found["labels"]):
            share = entry["shares"].get(label, 0)
            assert share == pytest.approx((mask == index).mean(), abs=1e-4)
        assert cv2.imread(str(output / f"{name}_labels.png")).shape == source.shape
        side = cv2.imread(str(output / f"{name}_side.png"))
        np.testing.assert_array_equal(side[-source.shape[0] :, : source.shape[1]], source)


def test_broken_images_are_skipped_named_and_counted(checkpoint, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (photos / "two" / "text.jpg").write_text("text")
    assert run(checkpoint, tmp_path / "out", "--labels=dog,cat", photos) == 1
    printed = capsys.readouterr()
    assert "segmented 3 of 5 images" in printed.out
    assert "2 of 5 images could not be read" in printed.err
    assert "skipped" in printed.err
    assert "broken.png: " in printed.err
    assert "text.jpg: unknown image format" in printed.err
    assert len(json.loads((tmp_path / "out/labels.json").read_text())["images"]) == 3


def test_photos_beyond_the_limit_are_skipped_and_named(checkpoint, photos, tmp_path, capsys):
    Image.fromarray(photo(50, 60)).save(photos / "large.png")
    flags = ["--labels=dog,cat", "--megapixels=0.0025"]
    assert run(checkpoint, tmp_path / "out", *flags, photos) == 1
    errors = capsys.readouterr().err
    assert "large.png: png of 50x60 (height x width) needs" in errors
    assert "1 of 4 images could not be read" in errors


def test_options_reach_the_model(checkpoint, photos, tmp_path):
    (tmp_path / "names.txt").write_text("dog\n\n grass, wet\n")
    flags = [f"--labels=@{tmp_path / 'names.txt'}", "--background_threshold=1"]
    flags += ["--protocol=tcl", "--prompts=a {}; the {}, here", "--window=32", "--stride=32"]
    flags += ["--num_kept=1", "--pamr_iterations=1", "--windows_at_once=8"]
    assert run(checkpoint, tmp_path / "out", *flags, photos / "one" / "a.png") == 0
    found = json.loads((tmp_path / "out/labels.json").read_text())
    assert found["labels"] == ["background", "dog", "grass, wet"]
    assert found["images"]["a"]["shares"] == {"background": 1.0}


def test_prompts_come_from_a_file_by_label_too(checkpoint, photos, tmp_path, monkeypatch):
    given = {}
    original = Segmenter.from_pretrained

    def keep(path, **options):
        given.update(options)
        return original(path, **options)

    monkeypatch.setattr(Segmenter, "from_pretrained", keep)
    (tmp_path / "lines.txt").write_bytes("my {}\nür {}\n".encode("utf-16"))
    (tmp_path / "by label.toml").write_text('"*" = ["a {}."]\nDog = "a hound"\n')
    for file, expected in (
        ("lines.txt", ["my {}", "ür {}"]),
        ("by label.toml", {"": ["a {}."], "Dog": ["a hound"]}),
    ):
        flags = ["--labels=dog,cat", f"--prompts=@{tmp_path / file}", photos / "one/a.png"]
        assert run(checkpoint, tmp_path / "out", *flags) == 0
        assert given["prompts"] == expected


def test_scores_and_groups_are_saved_beside_the_masks(checkpoint, photos, tmp_path):
    flags = ["--labels=dog,cat", "--save=masks,scores,groups", "--background_threshold=0.4"]
    assert run(checkpoint, tmp_path / "out", *flags, photos / "one") == 0
    result = next(
        Segmenter.from_pretrained(checkpoint, background=0.4).batch(
            photos / "one/b.jpg", ["dog", "cat"]
        )
    )
    scores, groups = (np.load(tmp_path / f"out/b_{kind}.npz") for kind in ("scores", "groups"))
    assert scores["scores"].dtype == np.float16
    np.testing.assert_allclose(scores["scores"], result.scores, atol=1e-3)
    np.testing.assert_array_equal(scores["classes"], result.classes)
    mask = np.asarray(Image.open(tmp_path / "out/b_mask.png"))
    np.testing.assert_array_equal(mask, result.mask)
    assert len(groups.files) == 2 * len(result.groups) == 4
    for stage, (of_pixel, maps) in enumerate(zip(result.groups, result.group_maps, strict=True), 1):
        np.testing.assert_array_equal(groups[f"groups_{stage}"], of_pixel)
        np.testing.assert_allclose(groups[f"maps_{stage}"], maps, atol=1e-3)
    assert {"a_scores.npz", "a_groups.npz"} < set(names_in(tmp_path / "out"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels=", "photos"], "labels: an empty label found"),
        (["--labels=dog,dog", "photos"], "labels: 'dog' found twice"),
        (["--labels=@none.txt", "photos"], "--labels=@none.txt: no such file"),
        (["--labels=dog", "--prompts=a photo", "photos"], "prompts: 'a photo' found, expected one"),
        (
            ["--labels=dog", "--prompts=@p.toml", "photos"],
            "'dgo' is none of the 1 names found",
        ),
        (["--labels=dog", "--save=mask", "photos"], "--save: 'mask' found, expected some of masks"),
        (["--labels=dog", "--window=-3", "photos"], "window=-3"),
        (["--labels=dog", "--background_threshold=7", "photos"], "background=7.0: expected"),
        (["--labels=dog", "none.jpg"], "none.jpg: no such file or folder"),
        (["--labels=dog", "empty", "*.bmp"], "empty, *.bmp: no image found, expected files that"),
        (["--labels=dog", "photos", "--output=photos/notes.txt"], "notes.txt: a file found"),
        (["--labels=dog", "photos", "--checkpoint=none"], "none: no such file or directory"),
    ],
)
def test_a_wrong_flag_ends_with_one_line_before_anything_is_written(
    checkpoint, photos, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("p.toml").write_text('dgo = ["a dog"]')
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, "out", *flags)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not Path("out").exists()


def test_files_folders_and_globs_are_found_once_and_results_never(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(photos / "one/a.png", photos / "one/a_mask.png")
    found = segment.find_images(["photos/two", "photos/**/a.*", "photos/one"], photos / "one")
    assert [str(path) for path in found] == [
        "photos/two/a.png",
        "photos/one/a.png",
        "photos/one/b.jpg",
    ]
    elsewhere = segment.find_images(["photos/one"], tmp_path / "out")
    assert len(elsewhere) == 3
    Image.fromarray(photo(8, 8)).save("what[1].png")
    assert segment.find_images(["what[1].png"], tmp_path / "out") == [Path("what[1].png")]


def test_no_two_files_share_a_name():
    paths = [Path(name) for name in ("x/a.jpg", "y/a.jpg", "A.png", "a_2.jpg", "b.jpg")]
    names = segment.unique_names(paths)
    assert list(names.values()) == paths
    assert list(names) == ["a", "a_2", "A_3", "a_2_2", "b"]
    assert len({name.casefold() for name in names}) == len(paths)


def test_what_was_written_is_described_even_if_a_later_picture_cannot_be(
    checkpoint, photos, tmp_path
):
    (tmp_path / "out/b_groups.png").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(checkpoint, tmp_path / "out", "--labels=dog,cat", photos)
    assert list(json.loads((tmp_path / "out/labels.json").read_text())["images"]) == ["a"]
