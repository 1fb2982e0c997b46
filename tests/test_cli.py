"""`lk` as it is typed: what it prints, what it refuses, and with which status it ends."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerwise_knowledge import cli


@pytest.fixture
def lk(root, tmp_path):
    def run(*words, cwd=root, **env):
        env = {"LAYERWISE_CACHE": str(tmp_path/"cache"), "PYTHONWARNINGS": "ignore"} | env
        return subprocess.run([Path(sys.executable).with_name("lk"), *words], cwd=cwd,
                              capture_output=True, text=True, env=os.environ | env)
    return run


@pytest.mark.parametrize("words, answer", [
    ("figures fig99", "there is no figure 'fig99'; there are fig0"),
    ("figures fig02 --profile fast", "there is no profile 'fast'; settings.ini has paper"),
    ("figures fig02 --set colour=red", "has no parameter colour; it has"),
    ("figures fig02 --set colour", "a parameter is written name=value"),
    ("train mnist/mlp8", "has no experiment 'mnist mlp8'"),
    ("score mnist", "an experiment is written dataset/network"),
    ("report mnist/mlp8", "has no experiment 'mnist mlp8'"),
    ("report --profile fast", "there is no profile 'fast'"),
    ("data imagenet", "there is no data set 'imagenet'; there are mnist"),
    ("paint", "invalid choice: 'paint'"),
    ("", "required: command"),
])
def test_wrong_words(words, answer, capsys):
    try:
        status = cli.main(words.split())
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and answer in err and "Traceback" not in err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert e.value.code == 0
    assert all(c in out for c in ("data", "train", "score", "figures", "report"))


@pytest.mark.parametrize("command, profile", [
    ("reproduce sst2/minilm", "paper"), ("reproduce", "paper"), ("figures", "paper"),
    ("report", "paper"), ("train", "quick"), ("score", "quick")])
def test_profile_that_is_usual(command, profile, capsys):
    args = cli.parser().parse_args(command.split())
    assert args.profile == profile
    if command.startswith("reproduce"):
        assert ("sst2", "minilm") in [found[:2] for found in cli._chosen(args)]
    with pytest.raises(SystemExit):
        cli.main([command.split()[0], "--help"])
    assert f"(default: {profile})" in " ".join(capsys.readouterr().out.split())


def test_train_score_report(lk):
    out = lk("train", "mnist/mlp7", "--profile", "smoke", "--quiet")
    assert out.returncode == 0, out.stderr
    assert "mnist/mlp7: test accuracy" in out.stdout and "linear3" in out.stdout
    out = lk("report", "mnist/mlp7", "--profile", "smoke")
    assert out.returncode == 2 and "nothing to report" in out.stderr           # computes nothing
    assert "lk reproduce mnist/mlp7 --profile smoke" in out.stderr
    assert lk("score", "mnist/mlp7", "--profile", "smoke", "--quiet").returncode == 0
    out = lk("report", "mnist/mlp7", "census/mlp7", "--profile", "smoke")
    assert out.returncode == 0, out.stderr
    assert "paper 21.8" in out.stdout and "3 of 100 samples" in out.stdout
    assert "not computed here: census/mlp7" in out.stdout
    assert all(f"\nC{k} " in out.stdout for k in range(1, 13))
    assert max(map(len, out.stdout.split("\n"))) <= 150
    assert "replicates" not in out.stdout                            # no verdict from three samples


def test_report_into_a_closed_pipe(root, drawn):
    env = os.environ | {"LAYERWISE_CACHE": str(drawn/"cache")}
    lk = Path(sys.executable).with_name("lk")
    code = f"set -o pipefail; {lk} report --profile smoke | head -1"
    out = subprocess.run(["bash", "-c", code], cwd=root, capture_output=True, text=True, env=env)
    assert "Traceback" not in out.stderr and out.stdout.startswith("----")


def test_report_of_what_the_figures_computed(root, drawn, tmp_path, monkeypatch):
    "The report on the profile smoke: it judges nothing from so few samples; pictures where told"
    monkeypatch.setenv("LAYERWISE_CACHE", str(drawn/"cache"))
    pictures = tmp_path/"pictures"
    out = cli.draw(root/"nbs"/"report.ipynb", profile="smoke", folder=str(pictures))
    out = json.loads(out.read_text())
    text = "".join("".join(o.get("text", [])) for c in out["cells"] for o in c.get("outputs", []))
    assert "profile smoke, tau = 0.05: 3 experiments" in text
    assert "here: not tested; 3 of 100 samples" in text
    drawn_here = {p.name for p in pictures.iterdir()}
    assert {"report_c1_smoke.png", "report_c2_smoke.svg", "report_gaps_smoke.png"} <= drawn_here


@pytest.fixture(scope="module")
def drawn(request, tmp_path_factory):
    "All figures, drawn twice: from nothing, and again from what the first run kept"
    root, base = request.config.rootpath, tmp_path_factory.mktemp("figures")
    for k in (1, 2):
        words = ["figures", "--profile", "smoke", "--quiet", "--set", f"folder={base/str(k)}"]
        out = subprocess.run([Path(sys.executable).with_name("lk"), *words], cwd=root,
                             capture_output=True, text=True,
                             env=os.environ | {"LAYERWISE_CACHE": str(base/"cache")})
        assert out.returncode == 0, out.stderr
        assert "WARNING" not in out.stderr, "kernels have something to say: " + out.stderr
        (base/f"{k}.txt").write_text(out.stdout)
    return base


def test_figures_are_drawn_and_the_same_each_time(drawn):
    names = sorted(p.name for p in (drawn/"1").iterdir())
    assert {"fig02", "fig03", "fig07"} <= {n.split("_")[0] for n in names}
    png, svg = ({n.split(".")[0] for n in names if n.endswith(end)} for end in (".png", ".svg"))
    assert png == svg
    assert names == sorted(p.name for p in (drawn/"2").iterdir())
    for n in names:
        first, second = ((drawn/k/n).read_bytes() for k in "12")
        assert first == second, f"{n} differs on the second run"


def test_a_list_says_which_figure_is_where(drawn):
    lines = (drawn/"1.txt").read_text().splitlines()
    assert [l.split()[1] for l in lines if l.startswith("Figure ")] == [
        str(int(name[3:])) for name in cli.figure_notebooks()]
    listed = [Path(l.split()[-1]) for l in lines if l.endswith(".png")]
    assert sorted(listed) == sorted(p.resolve() for p in (drawn/"1").glob("*.png"))
    for path in listed:
        assert path.is_file()
    for l in lines:
        assert l.endswith(".png") or "nothing to draw" in l or l == lines[-1], l


def test_git_keeps_the_figures_of_paper_alone(root):
    here = dict(cwd=root, capture_output=True, text=True)
    def ignored(*names):
        out = subprocess.run(["git", "check-ignore", *names], **here)
        if out.returncode not in (0, 1):
            pytest.skip("not a clone")
        return out.stdout.split()
    other = ["figures/quick/fig03_mnist_mlp7_quick.png", "figures/fig03_mnist_mlp7_quick.svg",
             "figures/smoke/fig02_mnist_smoke.png"]
    ours = ["figures/fig03_mnist_mlp7_paper.png", "figures/report_optima_paper.csv"]
    assert ignored("--no-index", *other, *ours) == other
    kept = subprocess.run(["git", "ls-files", "figures"], **here).stdout.split()
    assert kept and all(Path(k).stem.endswith("_paper") for k in kept)
    quick = root/"nbs"/"figures"/cli.figure_folder("quick")
    assert quick.resolve() == (root/"figures"/"quick").resolve()


def test_a_parameter_reaches_the_figure(drawn):
    for path in (drawn/"cache"/"executed").glob("fig*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        tags = [c["metadata"].get("tags", []) for c in cells]
        where = [k for k, of in enumerate(tags) if "injected-parameters" in of]
        injected = ["".join(cells[k]["source"]) for k in where]
        assert len(injected) == 1 and "smoke" in injected[0] and str(drawn) in injected[0]
        assert "parameters" in tags[where[0] - 1]


def test_data_says_where_it_comes_from(lk):
    out = lk("data", "mnist-embedded")
    assert out.returncode == 0 and "4,000 training and 1,000 test samples" in out.stdout


def test_missing_data_names_the_ways_to_get_it(lk, tmp_path):
    out = lk("data", "commercial", LAYERWISE_DATA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    if out.returncode == 0:
        pytest.skip("the network brought it")
    assert out.returncode == 2 and "Three ways to get it" in out.stderr and "bike" in out.stderr


def test_outside_a_clone(lk, tmp_path):
    out = lk("report", cwd=tmp_path, LAYERWISE_HOME=str(tmp_path))
    assert out.returncode == 2 and "no settings.ini" in out.stderr
    out = lk("report", "--help", cwd=tmp_path, LAYERWISE_HOME=str(tmp_path))
    assert out.returncode == 0 and "a profile of settings.ini (default" in out.stdout


def _long(k):
    import time
    time.sleep(2)
    return k


def test_a_cluster_that_loses_all_workers_is_told_of_in_a_sentence(monkeypatch):
    distributed = pytest.importorskip("distributed")
    from joblib import Parallel, delayed
    monkeypatch.setattr(cli, "_PATIENCE", 2)
    quiet = dict(dashboard_address=None, silence_logs=50)
    with distributed.LocalCluster(1, threads_per_worker=2, processes=True, **quiet) as cluster:
        with pytest.raises(RuntimeError, match="all workers of .* are gone; what was finished is"):
            with cli._workers(cluster.scheduler_address):
                jobs = Parallel(return_as="generator")(delayed(_long)(k) for k in range(40))
                assert next(jobs) == 0
                cluster.scale(0)                                       # all of them
                list(jobs)
