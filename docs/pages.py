"""Pages of the site that no notebook holds: the API, from docstrings, the changelog, the explorer

`make docs` calls it twice: `pages.py FOLDER` before Sphinx reads that folder, and
`pages.py --explorer FILE` after it."""
import importlib
import inspect
import re
import sys
from pathlib import Path

import layerwise_knowledge as lk

HERE = Path(__file__).parent.parent
MODULES = ["track", "knowledge", "players", "rules", "scores", "networks", "probes", "interactions",
           "sparsify", "metrics", "sampled", "sampled_knowledge", "text", "datasets", "sentences",
           "models", "training", "settings", "experiments", "results", "plots", "pictures", "look",
           "explore", "judging", "answers", "measured", "report", "choices", "telling",
           "patch_choice", "hooks", "logistic", "feature_store", "probe_files", "solver",
           "column_generation", "pricing", "held_out", "noise_size", "noise_gradients", "sources",
           "files"]


def cell(text):
    "Text for one cell of a table"
    return " ".join(str(text or "").split()).replace("|", "\\|")


def comments(thing):
    "What the source says of each argument, in the comment beside it; `return` is the result"
    said, last = {}, None
    plain = inspect.isclass(thing) and "__init__" in vars(thing) and not hasattr(
        thing, "__dataclass_fields__")
    for line in inspect.getsource(thing.__init__ if plain else thing).split("\n"):
        code, _, comment = line.partition("  # ") if "  # " in line else line.partition("# ")
        name = re.match(r"\s*\*{0,2}(\w+)\s*[:=,)]?", code)
        if code.strip().startswith((")", "):")):
            name, last = None, "return"
        if name and code.strip() and not code.strip().startswith(("def ", "class ", "@", '"')):
            last = name[1]
        if last and comment:
            said[last] = " ".join(filter(None, [said.get(last), comment.strip()]))
        if code.rstrip().endswith(":") and last == "return":
            last = "result"                                   # and what follows it, in comments
        elif code.strip().startswith('"') or code.rstrip().endswith(":") and "def " not in code:
            break
    joined = " ".join(filter(None, [said.pop("return", ""), said.pop("result", "")]))
    return said | {"return": joined}


def arguments(thing):
    "Names, defaults and what is said of them, as a table"
    try:
        taken, said = inspect.signature(thing).parameters, comments(thing)
    except (TypeError, ValueError, OSError):
        return ""
    rows = []
    for name, p in taken.items():
        if name != "self":
            default = "" if p.default is p.empty else f"`{cell(repr(p.default))}`"
            rows.append(f"| `{name}` | {default} | {cell(said.get(name))} |")
    kind = inspect.signature(thing).return_annotation
    kind = "" if kind is inspect.Signature.empty else f"`{getattr(kind, '__name__', kind)}`"
    if told := " ".join(filter(None, [kind, said["return"]])):
        rows.append(f"| *returns* | | {cell(told)} |")
    return "\n".join(["| | default | |", "|---|---|---|", *rows, ""]) if rows else ""


def entry(name, thing, level="###"):
    "One name: heading, call, docstring, arguments, and a class's methods"
    lines = [f"{level} `{name}`", ""]
    if callable(thing):
        says = inspect.getdoc(thing) or ""
        short = says.startswith(f"{name.rpartition('.')[2]}(")        # what dataclasses write
        lines += ["" if short else says, "", arguments(thing)]
    else:
        lines += [f"```python\n{cell(repr(thing))[:300]}\n```"]
    if inspect.isclass(thing):
        own = [(m, f) for m, f in vars(thing).items() if not m.startswith("_")]
        for m, f in own:
            f = f.func if hasattr(f, "func") else f
            f = f.__func__ if isinstance(f, (classmethod, staticmethod)) else f
            if inspect.isfunction(f) and f.__doc__:
                lines += ["", entry(f"{name}.{m}", f, level + "#")]
    return "\n".join(lines) + "\n"


def api():
    "The page of all public names"
    doors = "".join(entry(f"lk.{name}", getattr(lk, name)) for name in lk.__all__)
    parts = ["# API", "From the docstrings. What `import layerwise_knowledge as lk` offers comes "
             "first; its modules, each with the chapter that it is written in, follow.",
             "## layerwise_knowledge", doors]
    chapters = {p.stem.partition("_")[2]: p.stem for p in (HERE/"nbs").glob("[0-9][0-9]_*.ipynb")}
    known = {id(getattr(lk, name)) for name in lk.__all__}
    for name in MODULES:
        module = importlib.import_module(f"layerwise_knowledge.{name}")
        where = f" ([chapter]({chapters[name]}.ipynb))" if name in chapters else ""
        parts += [f"## {name}", f"{module.__doc__.strip()}{where}"]
        parts += [entry(n, getattr(module, n)) for n in module.__all__
                  if id(getattr(module, n)) not in known]
    return "\n\n".join(parts)


def titles(s, out, names):
    "A line per sample"
    if s["choice"] == "words":
        return [" ".join(p) for p in names]
    what = "row" if s["choice"] == "columns" else "image"
    return [f"test {what} {k}, class {y}" for k, y in zip(out.sample.values, out.y.values)]


def explorer(path):
    "The page with networks of the experiments"
    from layerwise_knowledge import experiments as ex
    from layerwise_knowledge import explore
    chosen = {"ResNet-20 on MNIST": ("paper", "mnist", "resnet20"),
              "ResNet-20 on CIFAR-10": ("paper", "cifar10", "resnet20"),
              "MiniLM on SST-2": ("paper", "sst2", "minilm"),
              "MLP-7 on census": ("paper", "census", "mlp7")}
    networks, lines = {}, {}
    for name, of in chosen.items():
        s = ex.settings(*of)
        k = networks[name] = ex.get_knowledge(s, progress=False)
        out = ex.get_interactions(s, progress=False)
        lines[name] = titles(s, out, [p.names for p in k.players[:6]])[:6]
    explore.explorer(networks, path, titles=lines)


if __name__ == "__main__":
    if sys.argv[1] == "--explorer":
        explorer(Path(sys.argv[2]))
    else:
        folder = Path(sys.argv[1])
        changes = (HERE/"CHANGELOG.md").read_text().replace("](nbs/", "](")
        changes = changes.replace("](settings.ini)", "](../settings.ini)")
        changes = changes.replace("](examples)", "](index.ipynb)")
        (folder/"changelog.md").write_text(changes)
        (folder/"api.md").write_text(api())
