import gzip

import pytest
from idx_files import (
    DIGITS_MAPPING,
    emnist_members,
    image_bytes,
    label_bytes,
    letters_members,
    picture,
)

from tinkering.data import get, load
from tinkering.errors import ArgumentError, DataError

TRAIN = [picture(i, 3, 5) for i in range(4)]
TEST = [picture(50 + i, 3, 5) for i in range(2)]


def write_mnist(folder, separator="-", packed=True, train_labels=(0, 1, 2, 0), test_labels=(2, 1)):
    contents = {
        f"train-images{separator}idx3-ubyte": image_bytes(TRAIN),
        f"train-labels{separator}idx1-ubyte": label_bytes(train_labels),
        f"t10k-images{separator}idx3-ubyte": image_bytes(TEST),
        f"t10k-labels{separator}idx1-ubyte": label_bytes(test_labels),
    }
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


def write_emnist(folder, members):
    for name, content in members.items():
        (folder / name.removeprefix("gzip/")).write_bytes(content)


def folder_error(name):
    with pytest.raises(DataError) as caught:
        load(name)
    return str(caught.value)


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_the_naming_of_mnist(tmp_path, separator, packed):
    write_mnist(tmp_path, separator, packed)
    (tmp_path / "README.md").write_text("not data")
    dataset = load(f"idx:{tmp_path}")
    assert dataset.name == f"idx:{tmp_path}"
    assert dataset.train.pixels.tolist() == TRAIN
    assert dataset.test.pixels.tolist() == TEST
    assert dataset.train.y.tolist() == [0, 1, 2, 0]
    assert dataset.test.y.tolist() == [2, 1]
    assert dataset.classes == ("0", "1", "2")
    assert get(f"idx:{tmp_path}") == tmp_path


def test_the_naming_of_emnist_is_transposed(tmp_path):
    half = (TRAIN, [1, 0, 9, 9])
    write_emnist(tmp_path, emnist_members("digits", half, half, DIGITS_MAPPING))
    dataset = load(f"idx:{tmp_path}")
    assert dataset.train.pixels.tolist() == TRAIN
    assert dataset.train.y.tolist() == [1, 0, 9, 9]
    assert len(dataset.classes) == 10


def test_without_a_mapping_the_numbers_are_the_names(tmp_path):
    write_emnist(tmp_path, letters_members())
    (tmp_path / "emnist-letters-mapping.txt").unlink()
    dataset = load(f"idx:{tmp_path}")
    assert dataset.classes == tuple(str(i) for i in range(1, 27))
    assert dataset.test.y.tolist() == list(range(26))


def test_without_a_mapping_a_gap_is_an_error(tmp_path):
    write_mnist(tmp_path, train_labels=(0, 1, 200, 0))
    assert folder_error(f"idx:{tmp_path}") == (
        f"{tmp_path / 'train-labels-idx1-ubyte.gz'}: expected each label from 0 to 200 at least "
        "once, as there is no mapping file, found no 2."
    )


def test_a_test_label_that_never_occurs_in_training(tmp_path):
    write_mnist(tmp_path, test_labels=(0, 3))
    assert folder_error(f"idx:{tmp_path}") == (
        f"{tmp_path / 't10k-labels-idx1-ubyte.gz'}: expected only the 3 labels of the training "
        "labels, 0 to 2, found 3 at position 1."
    )


def test_several_data_sets_are_listed_and_one_is_chosen(tmp_path):
    write_emnist(tmp_path, letters_members())
    half = (TRAIN, [1, 0, 9, 9])
    write_emnist(tmp_path, emnist_members("digits", half, half, DIGITS_MAPPING))
    write_mnist(tmp_path)
    assert folder_error(f"idx:{tmp_path}") == (
        f"{tmp_path}: expected one data set, found 3: digits, letters, train-t10k. "
        f"Choose one, for example idx:{tmp_path}#digits."
    )
    assert len(load(f"idx:{tmp_path}#letters").train) == 52
    assert load(f"idx:{tmp_path}#digits").train.pixels.tolist() == TRAIN
    assert load(f"idx:{tmp_path}#train-t10k").test.pixels.tolist() == TEST
    assert folder_error(f"idx:{tmp_path}#balanced") == (
        f"{tmp_path}: expected files of balanced, found those of digits, letters, train-t10k."
    )


def test_a_folder_with_a_hash_in_its_name(tmp_path):
    folder = tmp_path / "data#1"
    folder.mkdir()
    write_mnist(folder)
    assert len(load(f"idx:{folder}").train) == 4
    assert len(load(f"idx:{folder}#train-t10k").train) == 4


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "digits").mkdir()
    write_mnist(tmp_path / "digits")
    assert len(load("idx:~/digits").train) == 4


def test_the_plain_file_is_read_where_both_are_there(tmp_path):
    write_mnist(tmp_path, packed=True)
    write_mnist(tmp_path, packed=False, test_labels=(0, 0))
    assert load(f"idx:{tmp_path}").test.y.tolist() == [0, 0]


def test_a_gzipped_file_without_the_ending_and_the_reverse(tmp_path):
    write_mnist(tmp_path, packed=False)
    plain = tmp_path / "train-images-idx3-ubyte"
    plain.write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "t10k-images-idx3-ubyte").rename(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert load(f"idx:{tmp_path}").test.pixels.tolist() == TEST


def test_no_folder(tmp_path):
    assert folder_error(f"idx:{tmp_path}/none") == (
        f"{tmp_path}/none: expected a folder of IDX files, found nothing there."
    )
    (tmp_path / "file").write_text("")
    assert folder_error(f"idx:{tmp_path}/file") == (
        f"{tmp_path}/file: expected a folder of IDX files, found a file."
    )
    with pytest.raises(DataError, match="expected a folder of IDX files, found nothing there"):
        get(f"idx:{tmp_path}/none#letters")
    for name in ("idx:", "idx:#letters"):
        with pytest.raises(ArgumentError, match="name: needed idx:FOLDER or idx:FOLDER#SPLIT, got"):
            load(name)


def test_an_empty_folder(tmp_path):
    assert folder_error(f"idx:{tmp_path}") == (
        f"{tmp_path}: expected files such as train-images-idx3-ubyte.gz or "
        "emnist-SPLIT-train-images-idx3-ubyte.gz, found none."
    )


@pytest.mark.parametrize(
    ("missing", "wanted"),
    [
        ("t10k-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"),
    ],
)
def test_a_missing_file_of_mnist(tmp_path, missing, wanted):
    write_mnist(tmp_path)
    (tmp_path / missing).unlink()
    assert folder_error(f"idx:{tmp_path}") == (
        f"{tmp_path}: expected a file {wanted}, plain or .gz, found none."
    )


def test_a_missing_file_of_emnist(tmp_path):
    write_emnist(tmp_path, letters_members())
    (tmp_path / "emnist-letters-test-images-idx3-ubyte.gz").unlink()
    message = folder_error(f"idx:{tmp_path}")
    assert "expected a file emnist-letters-test-images-idx3-ubyte, plain or .gz, found" in message


def test_a_damaged_file_is_named(tmp_path):
    write_mnist(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert folder_error(f"idx:{tmp_path}") == (
        f"{path}: expected 60 bytes after the header, for 4 x 3 x 5 values, found only 59. "
        "The file is cut short; get it again."
    )
