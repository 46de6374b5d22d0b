"""Both protocols' images: what is asked of a model, and that a killed run goes on."""

from types import SimpleNamespace

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.cases.case import Cell, Chunk
from context_diffusion.evaluation.cases.heldout import HeldoutCases, heldout_cases
from context_diffusion.evaluation.cases.pictures import truths
from context_diffusion.evaluation.cases.selection import Selection
from context_diffusion.evaluation.cases.table import TableCases
from context_diffusion.evaluation.generate import generate, load_images, request
from context_diffusion.evaluation.plan import Plan
from context_diffusion.maps import make_map

from .stand_ins import Echo, IdentityVAE, Library


@pytest.fixture(params=["heldout", "table"])
def plan(request, library):
    """Of either protocol: two seeds, files of four images."""
    if request.param == "heldout":
        return Plan(HeldoutCases(Library(), heldout_cases(Library(), seen=12, unseen=5, transforms=6)), 2, 4)
    selection = Selection(tasks=("softedge", "to-depth", "sketch"), ks=(1, 2, 3), count=5)
    return Plan(TableCases(library, selection), 2, 4)


def cell_of(plan, part, setting):
    """The cell of soft edges with three context images or none."""
    cells = [
        cell for cell in plan.case_set.cells() if (cell.part, cell.setting) == (part, setting) and cell.k in (0, 3)
    ]
    return next(cell for cell in cells if cell.task in ("softedge", "image"))


def test_settings_ask_for_what_they_say_from_the_same_noise(plan):
    asked = {}
    for setting in ("cp", "c", "p", "shuffled", "query_only"):
        asked[setting] = request(plan.case_set, Chunk(cell_of(plan, "seen", setting), 1, 0, 5))
    assert [name for name, batch in asked.items() if batch.context is not None] == ["cp", "c", "shuffled"]
    assert [name for name, batch in asked.items() if batch.prompts is not None] == ["cp", "p"]
    assert all(batch.query is not None for batch in asked.values())
    assert len({batch.seeds for batch in asked.values()}) == 1 and len(set(asked["cp"].seeds)) == 5
    assert torch.equal(asked["c"].context, asked["cp"].context)
    assert not torch.equal(asked["c"].context, asked["shuffled"].context)
    assert request(plan.case_set, Chunk(cell_of(plan, "seen", "c"), 0, 0, 5)).seeds != asked["c"].seeds


def test_a_sampler_is_shown_example_pairs_if_it_wants_them(plan):
    class Pairs(Echo):
        wants_context_queries = True

    for part in plan.case_set.parts:
        for setting in ("c", "shuffled"):
            chunk = Chunk(cell_of(plan, part, setting), 0, 0, 4)
            assert request(plan.case_set, chunk, Echo()).context_queries is None
            batch = request(plan.case_set, chunk, Pairs())
            assert batch.context_queries.shape == batch.context.shape
            for images, pairs in zip(batch.context, batch.context_queries, strict=True):
                assert torch.equal(pairs, make_map(images, "softedge"))
        assert (
            request(plan.case_set, Chunk(cell_of(plan, part, "query_only"), 0, 0, 4), Pairs()).context_queries is None
        )


def test_a_killed_run_goes_on_with_the_same_bytes_and_shards_share_the_work(plan, tmp_path):
    def run(folder, sampler=None, **options):
        sampler = sampler or Echo()
        return sampler, generate(plan, IdentityVAE(), sampler, tmp_path / folder, "a run", **options)

    whole, complete = run("whole")
    assert complete

    class Killed(Echo):
        def generate(self, batch):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().generate(batch)

    with pytest.raises(KeyboardInterrupt):
        run("parts", Killed())
    first, complete = run("parts", shard=(0, 2))
    assert not complete
    second, complete = run("parts", shard=(1, 2))
    assert complete
    assert 3 + len(first.asked) + len(second.asked) == len(whole.asked)
    for chunk in plan.chunks():
        files = [plan.path(tmp_path / folder, chunk) for folder in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()
    for cell in plan.case_set.cells():
        cases = plan.case_set.cases(cell)
        images = load_images(plan, tmp_path / "parts", cell, plan.cell_seeds(cell) - 1)
        size = plan.case_set.library.size
        assert images.shape == (len(cases), 3, size, size) and images.dtype == torch.uint8
        if cell.setting == "vae":
            expected = truths(plan.case_set.library, cell.task, cases)
            assert torch.equal(images, (expected * 255).round().to(torch.uint8))
    with pytest.raises(ContextDiffusionError, match="lacks 2 of 2 files .* run the generation again"):
        load_images(plan, tmp_path / "parts", Cell("unseen", "softedge", "c", 3), 2)


def test_without_a_bar_the_log_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    clock = iter(range(0, 100000, 40))
    monkeypatch.setattr("context_diffusion.evaluation.generate.time", SimpleNamespace(monotonic=lambda: next(clock)))
    caplog.set_level("INFO", logger="context_diffusion")
    plan = Plan(HeldoutCases(Library(), heldout_cases(Library(), seen=12, unseen=0, transforms=0)), 1, 4)
    generate(plan, IdentityVAE(), Echo(), tmp_path, "held-out")
    said = [record.getMessage() for record in caplog.records if record.getMessage().endswith(" left")]
    # 40 s pass with each of 18 chunks of 4 images: every second one says it, and 64 images at 10 s each are left first.
    assert len(said) == 9
    assert said[0] == "held-out: 8 of 72 images, 11 min left" and said[-1] == "held-out: 72 of 72 images, 0 s left"
