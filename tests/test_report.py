"""The page is whole, self-contained and says what the manifest says."""

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from awp_edge.errors import AwpError
from awp_edge.report import error_plot, render, write_report


def layer(name, block, error, sparsity=0.5):
    return {
        "name": f"model.layers.{block}.{name}",
        "block": block,
        "shape": [8, 4],
        "relative_error": error,
        "iterations": 3,
        "reason": "gradient",
        "sparsity": sparsity,
        "bits_per_weight": 32.0,
    }


def manifest(*layers):
    return {
        "model": {"architecture": "<LlamaForCausalLM>"},
        "spec": {"method": "awp", "bits": None, "sparsity": 0.5},
        "layers": list(layers),
        "bits_per_weight": 32.0,
        "mean_relative_error": 0.0123,
        "files": {},
    }


LAYERS = [
    layer("q_proj", 0, 1e-3),
    layer("up_proj", 0, 2e-2),
    layer("q_proj", 1, 0.0),
    layer("up_proj", 1, 0.3),
]


def test_the_plot_shows_every_positive_error_inside_the_frame():
    svg = ET.fromstring(re.match(r"<svg.*</svg>", error_plot(LAYERS))[0])
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
    assert len(dots) == 3
    assert all(70 <= x <= 850 and 10 <= y <= 260 for x, y in dots)
    by_height = sorted(dots, key=lambda dot: -dot[1])
    # Equal factors are equal distances: a log scale.
    steps = [a[1] - b[1] for a, b in pairwise(by_height)]
    assert steps[0] / steps[1] == pytest.approx(math.log(20) / math.log(15), rel=0.02)


def test_a_plot_of_exact_layers_says_so():
    assert "exact" in error_plot([layer("q_proj", 0, 0.0)])


def test_the_page_is_self_contained_and_escaped():
    text = render("a<b", manifest(*LAYERS), timings={"seconds": {"solve": 1.5}, "machine": {"cores": 2}},
                  results=[{"folder": "out", "perplexity": 21.5, "against_perplexity": 19.25, "kl": 0.05,
                            "top1_agreement": 0.9, "windows": 4, "seq_len": 1024}])  # fmt: skip
    assert not re.search(r"(src|href)=|https?:|<script", text)
    assert "a&lt;b" in text and "&lt;LlamaForCausalLM&gt;" in text and "<LlamaForCausalLM>" not in text
    for expected in ("0.0123", "21.5", "19.25", "neither speed nor size", "up_proj", "50.0%"):
        assert expected in text


def test_the_note_about_zeros_is_for_sparse_models():
    for spec, noted in (
        ({"bits": 4}, False),
        ({"bits": 4, "pattern": "32/64"}, False),
        ({"bits": 4, "sparsity": 0.5}, True),
        ({"rank": 0.5}, False),
    ):
        page = render("x", {**manifest(layer("q", 0, 0.1)), "spec": spec}, timings={})
        assert ("neither speed nor size" in page) == noted


def test_kinds_show_how_far_budgets_went_apart():
    text = render("x", manifest(layer("q_proj", 0, 0.1, 0.25), layer("q_proj", 1, 0.3, 0.75)), timings={})
    assert "<tr><td>q_proj</td><td>2</td><td>0.2</td><td>0.25 to 0.75</td><td>32</td></tr>" in text


def test_results_must_be_objects(tmp_path):
    (tmp_path / "r.json").write_text("[1]")
    with pytest.raises(AwpError, match="no manifest"):
        write_report(tmp_path, tmp_path / "page.html", results=[tmp_path / "r.json"])
    assert not (tmp_path / "page.html").exists()


def certificate(**changes):
    return {"relative_step": 1.9, "covered": False, "condition": 1e5, "stable_rank": 1.1, "rows": 32,
            "support_condition": 900.0, "rate": 0.999, "descent_gain": 0.001, "coordinate_gain": 0.07,
            "refit_gain": 0.01, "lower_bound": 0.5, "at_most": 2.0, "bound_for": "support", **changes}  # fmt: skip


def test_the_page_says_what_is_guaranteed():
    certified = [
        {**LAYERS[0], "certificate": certificate()},
        {**LAYERS[1], "certificate": certificate(at_most=None)},
    ]
    text = render("x", manifest(*certified), timings={})
    for expected in ("What is guaranteed", "1 of 2", "0 of 2", "2 to 2, median 2", "at most, times the best"):
        assert expected in text
    assert text.index("up_proj", text.index("What is guaranteed")) < text.rindex(
        "q_proj"
    )  # no bound comes first
    assert "What is guaranteed" not in render("x", manifest(*LAYERS), timings={})
