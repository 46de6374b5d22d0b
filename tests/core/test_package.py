"""The package: what importing it costs, what it carries, and that its documents match its commands."""

import json
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image

import context_diffusion
from context_diffusion.cli import build_parser
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.maps import MAPS
from context_diffusion.pretrained import bundled_model_path, bundled_models, find_model
from context_diffusion.pretrained.examples import find_example, load_examples

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
HEAVY = {"diffusers", "transformers", "kornia", "skimage", "accelerate"}

# Loads the repository's root as ComfyUI loads a node pack: by its path, under a name of its own.
AS_A_PACK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("a_pack", "__init__.py", submodule_search_locations=["."])
sys.modules["a_pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


@pytest.mark.parametrize(
    "code, unwanted",
    [
        ("import context_diffusion", HEAVY | {"torch"}),
        ("from context_diffusion.cli import build_parser; build_parser()", HEAVY | {"torch"}),
        (
            "from context_diffusion import load_image_as_tensor, make_map, ContextDiffusion",
            {"diffusers", "transformers"},
        ),
        (AS_A_PACK, HEAVY),
    ],
)
def test_imports_stay_light(code, unwanted):
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = set(found.stdout.split())
    assert "sys" in names and not names & unwanted


def test_public_names_exist():
    for name in context_diffusion.__all__:
        assert getattr(context_diffusion, name) is not None
    with pytest.raises(AttributeError, match="paint"):
        context_diffusion.paint  # noqa: B018


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_data_file_goes_into_the_wheel():
    patterns = project()["tool"]["setuptools"]["package-data"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "context_diffusion"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    files = [Path(name) for name in listed if name and not name.endswith(".py")]
    if not files:
        pytest.skip("not a git checkout")
    for file in files:
        matched = any(
            fnmatch(str(file), f"{package.replace('.', '/')}/{pattern}")
            for package, some in patterns.items()
            for pattern in some
        )
        assert matched, file


def test_the_node_registry_leaves_out_nothing_that_comfyui_reads():
    # The patterns mean what they mean to git.
    command = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    left_out = {name.partition("/")[0] for name in done.stdout.split("\0")}
    assert "tests" in left_out
    assert not left_out & {"__init__.py", "context_diffusion", "nodes", "web", "workflows", "pyproject.toml"}


def test_torch_and_the_rest_are_lower_bounds_only():
    settings = project()["project"]
    requirements = list(settings["dependencies"])
    for extra in settings["optional-dependencies"].values():
        requirements += extra
    for requirement in requirements:
        assert not re.search(r"==|~=|(?<!>)<|!=", requirement.partition(";")[0]), requirement


def test_examples_are_complete_and_their_files_are_accounted_for():
    folder = Path(context_diffusion.__file__).parent / "pretrained" / "examples"
    used = set()
    for name, example in load_examples().items():
        assert example.name == name and example.title and example.map in MAPS
        assert example.context or example.query or example.prompt
        used |= {*example.context, *([example.query] if example.query else [])}
    for path in used:
        with Image.open(path) as image:
            assert image.size == (128, 128) and image.format == "PNG"
    there = set((folder / "images").iterdir())
    assert used == there
    sheet = json.loads((folder / "examples.json").read_text())["files"]
    assert set(sheet) == {path.name for path in there}
    for entry in sheet.values():
        assert all(entry[field] for field in ("source", "attribution", "licence", "changes"))


def test_the_missions_example():
    example = find_example("moon-camp")
    assert example.prompt == "Full moon over our camp, East Greenland"
    assert len(example.context) == 3 and example.query is not None
    with pytest.raises(ContextDiffusionError, match="moon-camp"):
        find_example("sun-camp")


def test_attribution_names_every_style():
    from context_diffusion.data.sources.emoji_styles import CAPTION_PACKAGES, STYLES
    from context_diffusion.data.sources.icon_styles import ICON_SETS

    text = (Path(context_diffusion.__file__).parent / "pretrained" / "ATTRIBUTION.md").read_text()
    packages = [each.package for each in (*STYLES, *ICON_SETS)]
    for package in [*packages, *CAPTION_PACKAGES]:
        row = next(line for line in text.splitlines() if f"| {package.name} {package.version} |" in line)
        assert package.attribution in row and package.licence in row


def test_models_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in bundled_models():
        assert find_model(name) == bundled_model_path(name) and bundled_model_path(name).is_file()
    (tmp_path / "mine.safetensors").touch()
    assert find_model("mine.safetensors") == Path("mine.safetensors")
    with pytest.raises(ContextDiffusionError, match="theirs.safetensors does not exist"):
        find_model("theirs.safetensors")
    with pytest.raises(ContextDiffusionError, match="no bundled model 'theirs'"):
        find_model("theirs")


# Everything that has commands for a reader to run.
DOCUMENTS = ["README.md"] + sorted(
    str(path.relative_to(ROOT))
    for folder in ("docs", "context_diffusion/pretrained")
    for path in (ROOT / folder).rglob("*.md")
)


def code_blocks(document):
    """(language, text) of every code block of a document."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


def shell_commands(document):
    """Every command of a document's shell code blocks, as words, without the variables set before it."""
    for language, block in code_blocks(document):
        if language in ("bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    while words and re.match(r"\w+=", words[0]):
                        del words[0]
                    if words:
                        yield words


def commands(document):
    """Every `context-diffusion ...` command of a document's shell code blocks, or research's, as words."""
    for words in shell_commands(document):
        for start in (["context-diffusion"], ["python", "-m", "research"]):
            if words[: len(start)] == start:
                yield words[len(start) :]


@pytest.mark.parametrize(
    ("document", "least", "kinds"),
    [
        ("README.md", 7, {"generate", "info", "data", "train"}),
        ("docs/adapters.md", 2, {"adapter"}),
        ("docs/ablations.md", 3, {"train"}),
        ("docs/evaluation.md", 10, {"data", "evaluate"}),
        ("docs/results.md", 10, {"data", "train", "evaluate"}),
        ("docs/training.md", 16, {"data", "train", "generate"}),
    ],
)
def test_commands_of_the_documents_are_understood(document, least, kinds):
    found = list(commands(document))
    assert len(found) >= least and {words[0] for words in found} == kinds
    for words in found:
        try:
            build_parser().parse_args(words)
        except SystemExit as leaving:
            raise AssertionError(f"context-diffusion {' '.join(words)}") from leaving
        if words[0] == "train" and "$" not in words[1]:
            assert any((place / words[1]).is_file() for place in (ROOT, ROOT / "research")), words[1]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_say_their_language(document):
    # One without a language is no shell block, and its commands would go untested.
    assert all(language for language, _ in code_blocks(document))


def test_files_of_the_readme_exist():
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.S)
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link and link[0] != "#"]
    assert linked
    for link in linked:
        assert (ROOT / link.partition("#")[0]).exists(), link
