"""The README says what the result files say, and its marked places can be filled again and again."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MACHINE = {"processor": "A CPU", "cpu": "A CPU", "cores": 2, "date": "2026-01-02"}
ROW = {"bytes": 1e6, "sparsity": 0.0, "bits_per_weight": 4.5, "perplexity": 10.0, "kl": None, "top1_agreement": None,
       "prefill_tokens_per_second": 100.0, "decode_tokens_per_second": 50.0, "peak_memory_bytes": 2e6}  # fmt: skip
RESULTS = {
    "demo": {"rows": {"dense": ROW, "INT4": {**ROW, "kl": 0.01, "top1_agreement": 0.9}}, "machine": MACHINE,
             "evaluation": "4 windows", "seconds": {"fetch": 60.0}, "date": "2026-01-02"},
    "solver": {"machine": MACHINE, "results": {"threads": 2, "layers": [
        {"shape": [8, 4], "native_ms": 1.0, "torch_ms": 4.0, "speedup": 4.0, "native_product_gflops": 80.0,
         "torch_product_gflops": 100.0, "share_outside_product": 0.1}]}},
    "calibration": {"machine": MACHINE, "results": {"samples": 4, "seq_len": 2048, "threads": 2, "seconds": [],
                    "ratio_to_bare_forward": {"float32": 1.2, "bfloat16": 1.1}}},
    "guarantees": {"machine": MACHINE, "results": {"layers": {"model.layers.0.q": {
        "pruning_step": 1.9, "rounding_step": 1.4, "condition": None, "energy_ratio": 9.0, "pair_condition": 9.0,
        "feedback_gain": 0.5, "methods": {
            "awp 50%": {"relative_error": 0.1, "descent_gain": 0.1, "coordinate_gain": 0.1, "refit_gain": 0.1,
                        "support_condition": 50.0, "rate": 0.9, "at_most": 2.0, "rows": 16},
            "rtn INT4": {"relative_error": 0.1, "descent_gain": 0.0, "coordinate_gain": 0.1, "at_most": None}}}}}},
    "table": {"machine": MACHINE, "table": "all", "protocol": "1 window; A CPU, 2026-01-02.", "rivals": [],
              "dense": {"t.txt": {"perplexity": 19.0}}, "rows": [
        {"method": "awp", "setting": "50%", "mean_relative_error": 0.02, "seconds": 1.0, "cpu_seconds": 2.0,
         "bits_per_weight": 32.0, "packed_bits": 9.0, "texts": {"t.txt": {"perplexity": 38.0, "kl": 0.5}}}]},
    "layers": {"machine": MACHINE, "results": {"rows": [{"layer": "model.layers.3.q"}], "summary": {"default": {
        "n": 1, "mean": 0.01, "min": 0.01, "max": 0.01, "settings": {"50%": {
            "n": 1, "mean": 0.01, "min": 0.01, "max": 0.01}}}}}},
    "headroom": {"machine": MACHINE, "results": {"blocks": "3,10", "steps": 9, "rows": [{}], "excess": {
        "default": {"all": 0.01, "q_proj": 0.02}}}},
    "damping": {"machine": MACHINE, "results": {"rows": [
        {"damping": 0.03, "protocol": "1 window; A CPU, 2026-01-02.", "mean_relative_error": 0.02,
         "texts": {"t.txt": {"perplexity": 38.0, "kl": 0.5, "kl_spread": {"min": 0.4, "max": 0.6}}}}]}},
    "encoder": {"machine": MACHINE, "results": {"sentences": 4, "text": "t.txt", "samples": 8, "seq_len": 64,
                "calibration": "c4", "rows": [
        {"method": "awp", "setting": "50%", "mean_cosine": 0.99, "least_cosine": 0.9, "same_neighbour": 0.8,
         "mean_relative_error": 0.02}]}},
    "mutations": {"machine": MACHINE, "results": {"caught": 1, "of": 1, "mutations": [
        {"what": "a fault", "file": "f.py", "caught": True, "by": "tests/test_f.py::test"}]}},
    "scale": {"machine": MACHINE, "results": {"weights": 1e9, "calibration": "--samples 8", "rows": {"--bits 4": {
        "plan": {"peak_memory_bytes": 2e9, "calibration_seconds": 60.0, "solve_seconds": 60.0, "compressed_bytes": 1e9},
        "compress": {"seconds": 150.0, "peak_memory_bytes": 1.9e9}, "compressed_bytes": 1e9,
        "export": {"seconds": 60.0, "peak_memory_bytes": 5e9}, "edge_bytes": 8e8,
        "bench": {"prefill_tokens_per_second": 60.0, "decode_tokens_per_second": 15.0, "peak_memory_bytes": 1e9}}}}},
    "quality": {"machine": MACHINE, "results": {"text": "t.txt", "calibration": "c4", "windows": 8,
                                                "dense_perplexity": 19.0, "rows": [
        {"name": "awp 50%", "backend": "numpy", "perplexity": 38.0, "mean_relative_error": 0.02,
         "bits_per_weight": 32.0}]}},
    "sparse_avx2": {"machine": MACHINE, "results": {"kernels": "avx2", "threads": 2, "runs": 7, "limits": {
        "read_gb_s": 20.0, "memory_gweights": 48.0, "bits_per_weight": 3.3, "decode_gweights": 40.0}, "rows": [
        {"shape": [8, 4], "operator": "32/64, group 64", "streamed_us": 10.0, "streamed_speedup": 1.3,
         "streamed_gb_s": 18.0, "resident_us": 9.0, "resident_speedup": 1.1, "prefill_us": 100.0,
         "prefill_speedup": 1.0}]}},
}  # fmt: skip


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Loads a module of bench/ that keeps its results in a folder of the test."""
    monkeypatch.syspath_prepend(ROOT / "bench")

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        return module

    return load


@pytest.fixture
def readme(bench):
    """The module bench/readme.py."""
    return bench("readme")


@pytest.mark.parametrize("name", RESULTS)
def test_a_marked_place_becomes_a_table_once_and_for_all(readme, tmp_path, name):
    (tmp_path / f"{name}.json").write_text(json.dumps(RESULTS[name]))
    page = f"before\n<!-- results:{name} -->\nstale text\n<!-- /results:{name} -->\nafter\n"
    filled = readme.fill(page)
    assert "stale text" not in filled and "2026-01-02" in filled and "A CPU" in filled
    assert filled.startswith("before\n") and filled.endswith("after\n")
    assert readme.fill(filled) == filled


def test_the_demo_says_when_each_of_its_steps_was_run(readme, tmp_path):
    made = {**RESULTS["demo"], "origin": "Another CPU, 8 cores, 2025-12-30 to 2026-01-02"}
    (tmp_path / "demo.json").write_text(json.dumps(made))
    filled = readme.fill("<!-- results:demo -->\n<!-- /results:demo -->\n")
    assert "Another CPU, 8 cores, 2025-12-30 to 2026-01-02" in filled and "A CPU, 2 cores" not in filled


def test_peers_that_later_runs_keep_keep_their_date(bench, readme, tmp_path):
    result = json.loads(json.dumps(RESULTS["layers"]))
    fresh = {"relative_error": 0.1, "date": "2026-03-04", "processor": "B CPU"}
    result["results"]["rows"] = [
        {
            "layer": "model.layers.3.q",
            "setting": "50%",
            "methods": {"awp": {"relative_error": 0.2}, "alps": fresh},
        }
    ]
    (tmp_path / "layers.json").write_text(json.dumps(result))
    found = bench("layers").measured_before("layers")
    row = found["model.layers.3.q", "50%"]
    assert row["methods"]["alps"] == fresh
    assert row["methods"]["awp"] == {"relative_error": 0.2, "date": MACHINE["date"], "processor": "A CPU"}
    result["results"]["rows"] = list(found.values())
    assert readme.layers(result).endswith(". A CPU and B CPU, 2026-01-02 to 2026-03-04.\n")


def test_half_a_table_never_takes_the_place_of_a_whole_one(bench, tmp_path):
    common = bench("common")
    whole = common.write("quality", {"rows": [1, 2, 3]})
    before = whole.read_text()
    half = common.write("quality", {"rows": [4]}, complete=False)
    assert whole.read_text() == before and json.loads(half.read_text())["results"] == {"rows": [4]}
    assert common.write("quality", {"rows": [4, 5, 6]}) == whole
    assert json.loads(whole.read_text())["results"] == {"rows": [4, 5, 6]}
    assert list(tmp_path.iterdir()) == [whole]


def test_places_without_results_stay(readme):
    page = "<!-- results:demo -->\nstale text\n<!-- /results:demo -->"
    assert readme.fill(page) == page


def test_the_readme_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_place_has_a_renderer(readme):
    names = {match[2] for page in readme.PAGES for match in readme.MARKED.finditer(page.read_text())}
    assert names and names <= readme.RENDERERS.keys()
    assert names <= {file.stem for file in (ROOT / "bench" / "results").glob("*.json")}


def test_rows_that_join_a_table_are_compared_on_the_same_text(bench):
    def row(setting, bits, c4, wikitext, first):
        texts = {"c4": c4, "wikitext": wikitext}
        measured = {
            name: {"perplexity": p, "kl": 0.5, "top1_agreement": 0.6, "windows": 5}
            for name, p in texts.items()
        }
        return {
            "method": "awp-plus",
            "setting": setting,
            "packed_bits": bits,
            "texts": measured,
            **measured[first],
        }

    def table(order, *rows):
        dense = {name: {"perplexity": 9.0, "windows": 5} for name in order}
        made = [{"date": "2026-01-02", "machine": MACHINE}]
        return {
            "dense": dense,
            "rows": list(rows),
            "rivals": [],
            "made": made,
            "protocol": "5 windows; A CPU.",
        }

    kept = table(["c4", "wikitext"], row("INT2", 2.3, 20.0, 30.0, "c4"))
    added = table(["wikitext", "c4"], row("75% + INT4", 2.3, 40.0, 60.0, "wikitext"))
    sides = bench("table").joined(kept, added)["rivals"][0].values()
    assert [side["perplexity"] for side in sides] == [40.0, 20.0]
