"""Measure how fast an index in a folder is beside faiss itself, and how much memory opening it takes.

    uv run python benchmarks/index_search.py                              # 100,000 vectors of 2,048
    uv run python benchmarks/index_search.py --pages 20000 --queries 30   # on a small or busy machine
    uv run python benchmarks/index_search.py --maxsim                     # pages with 256 vectors of 128, MaxSim
    uv run python benchmarks/index_search.py --model MODEL                # an embedder beside sentence-transformers
    uv run python benchmarks/index_search.py --model MODEL --vllm         # vLLM's pooling runner beside ours

Vectors are random and of length 1. Queries are timed one by one, ours and faiss's in turn, on one thread; a ratio is
the median of pairs. Opening is measured in a process of its own: resident memory after it, and after a first search.
With --maxsim it is numpy's product of all pages in memory with the question, maxima and sum, that ours is beside; there
--pages is 5,000 unless it is given. Everything is written to a temporary folder and deleted.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

from recipes.indexing.places import make_single_embedder
from recipes.indexing.settings import GivenSettings, embedder_settings
from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import IndexedPage, PageFilter
from rsgrpo.types import FloatArray, ImageRef

ROWS_AT_ONCE = 10_000
PAGES = 100_000
MAXSIM_PAGES = 5_000
MAXSIM_VECTORS = 256  # of a page, each of MAXSIM_DIMENSION numbers
MAXSIM_DIMENSION = 128
MAXSIM_QUERY_VECTORS = 20
K = 10
NUM_IMAGES = 64
NUM_PAIRS = 5
BATCH = 32  # of sentence-transformers alone: its default
RANDOM = EmbedderIdentity(
    model="random",
    revision="none",
    pooling="none",
    query_instruction="",
    instruction_place="text",
    min_pixels=0,
    max_pixels=1,
    dpi=None,
    dimension=MAXSIM_DIMENSION,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--maxsim", action="store_true", help="compare pages with many vectors with numpy")
    parser.add_argument("--vllm", action="store_true", help="with --model: compare vLLM's runner with ours")
    parser.add_argument("--model", help="compare an embedder on this model with sentence-transformers alone")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--measure-opening", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if options.measure_opening:
        measure_opening(options.measure_opening)
        return
    if options.model:
        (measure_runners if options.vllm else measure_embedder)(options.model, options.preset)
        return
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "float16"):
            place = Path(folder) / precision
            if options.maxsim:
                measure_maxsim(place, precision, options.pages or MAXSIM_PAGES, options.queries)
            else:
                measure(place, precision, options.pages or PAGES, options.dimension, options.queries)


def unit_vectors(num: int, dimension: int, seed: int) -> FloatArray:
    """Draw random vectors of length 1, [num, dimension] float32."""
    drawn = np.random.default_rng(seed).standard_normal((num, dimension), dtype=np.float32)
    found: FloatArray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return found


def measure(folder: Path, precision: str, num_pages: int, dimension: int, num_queries: int) -> None:
    """Write an index of that many pages, and search it beside faiss's own of the same vectors."""
    identity = dataclasses.replace(RANDOM, dimension=dimension)
    config = IndexConfig(precision="float16") if precision == "float16" else IndexConfig(precision="float32")
    plain = plain_index(dimension, precision)
    seconds_plain = seconds_ours = 0.0
    with create_index(folder, identity, config) as index:
        for start in range(0, num_pages, ROWS_AT_ONCE):
            vectors = unit_vectors(min(ROWS_AT_ONCE, num_pages - start), dimension, seed=start)
            pages = [make_page(start + number) for number in range(len(vectors))]
            seconds_plain += seconds(partial(plain.add, vectors))
            seconds_ours += seconds(partial(index.add, pages, vectors))
        seconds_ours += seconds(index.save)
    queries = unit_vectors(num_queries, dimension, seed=2**32)
    opened = open_index(folder)
    allowed = PageFilter(documents=tuple(f"doc{number}.pdf" for number in range(0, 100, 10)))
    sel = faiss.IDSelectorBatch([row for row in range(num_pages) if row // 100 % 100 % 10 == 0])
    selected = faiss.SearchParameters(sel=sel)
    print(f"{precision}, {num_pages} pages of {dimension}; added and saved in {seconds_ours:.1f} s, faiss adds in "
          f"{seconds_plain:.1f} s")  # fmt: skip
    compare("search", lambda query: opened.search(query, K), lambda query: plain.search(query, K), queries)
    compare(
        "search in a tenth",
        lambda query: opened.search(query, K, allowed),
        lambda query: plain.search(query, K, params=selected),
        queries,
    )
    ours = [{hit.page.page_id for hit in found} for found in opened.search(queries, K)]
    theirs = [{make_page(row).page_id for row in rows} for rows in plain.search(queries, K)[1]]
    print(f"  the same {K} pages for {sum(a == b for a, b in zip(ours, theirs, strict=True))} of {num_queries} queries")
    command = [sys.executable, __file__, "--measure-opening", str(folder)]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")


def measure_maxsim(folder: Path, precision: str, num_pages: int, num_queries: int) -> None:
    """Write an index of pages with many vectors, and search it beside numpy's MaxSim over all of them in memory."""
    config = IndexConfig(precision="float16") if precision == "float16" else IndexConfig(precision="float32")
    shape = (num_pages, MAXSIM_VECTORS, MAXSIM_DIMENSION)
    vectors = unit_vectors(num_pages * MAXSIM_VECTORS, MAXSIM_DIMENSION, seed=0).reshape(shape)
    with create_index(folder, dataclasses.replace(RANDOM, is_multi_vector=True), config) as index:
        index.add([make_page(number) for number in range(num_pages)], list(vectors))
        index.save()
    queries = unit_vectors(num_queries * MAXSIM_QUERY_VECTORS, MAXSIM_DIMENSION, seed=2**32)
    sets = queries.reshape(num_queries, MAXSIM_QUERY_VECTORS, MAXSIM_DIMENSION)
    opened = open_index(folder)
    few = open_index(folder, IndexConfig(candidates=max(1, num_pages // 20)))
    print(f"{precision}, {num_pages} pages of {MAXSIM_VECTORS} vectors of {MAXSIM_DIMENSION}")

    def plain(query: FloatArray) -> FloatArray:
        scores: FloatArray = (vectors @ query[0].T).max(axis=1).sum(axis=1)
        return scores

    compare("MaxSim over all", lambda query: opened.search(query, K), plain, sets, peer="numpy")
    compare("over a twentieth by means", lambda query: few.search(query, K), plain, sets, peer="numpy")
    ours = [{hit.page.page_id for hit in found} for found in opened.search(sets, K)]
    theirs = [{make_page(int(row)).page_id for row in np.argsort(-plain(query[None]))[:K]} for query in sets]
    print(f"  the same {K} pages for {sum(a == b for a, b in zip(ours, theirs, strict=True))} of {num_queries} queries")


def plain_index(dimension: int, precision: str) -> faiss.Index:
    if precision == "float16":
        half = faiss.ScalarQuantizer.QT_fp16
        return faiss.IndexScalarQuantizer(dimension, half, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(dimension)


def make_page(number: int) -> IndexedPage:
    document = f"doc{number // 100 % 100}.pdf"
    return IndexedPage(page_id=f"{document}#{number}", document=document, page_number=number + 1)


def compare(
    name: str,
    ours: Callable[[FloatArray], object],
    theirs: Callable[[FloatArray], object],
    queries: FloatArray,
    peer: str = "faiss",
) -> None:
    """Time both searches on each query in turn, and print their medians."""
    ours(queries[:1])
    theirs(queries[:1])
    single = [query[None] for query in queries]
    pairs = [(seconds(partial(ours, query)), seconds(partial(theirs, query))) for query in single]
    mine, plain = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(our_seconds / their_seconds for our_seconds, their_seconds in pairs)
    print(f"  {name}: {mine:.1f} ms, {peer} {plain:.1f} ms, ratio {ratio:.2f}")


def measure_opening(folder: Path) -> None:
    """Open an index in this process, and print the time and memory that it takes."""
    before = resident_mib()
    begin = time.perf_counter()
    index = open_index(folder)
    spent = time.perf_counter() - begin
    opened = resident_mib()
    index.search(unit_vectors(1, index.identity.dimension, seed=1), K)
    print(
        f"  opened in {1e3 * spent:.0f} ms: {opened['RssAnon'] - before['RssAnon']:.0f} MiB of memory of its own, "
        f"{opened['RssFile'] - before['RssFile']:.0f} MiB mapped; after a search "
        f"{resident_mib()['RssAnon'] - before['RssAnon']:.0f} and {resident_mib()['RssFile'] - before['RssFile']:.0f}"
    )


def resident_mib() -> dict[str, float]:
    """Read the resident memory of this process in MiB: its own, and that mapped from files, which may be dropped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("RssAnon", "RssFile"))
    }


def measure_embedder(model: str, preset: str) -> None:
    """Embed the same pages with the embedder and with its sentence-transformers model alone, in pairs."""
    # Here: it imports torch, which searches do not need.
    from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder

    embedder = SentenceEmbedder(embedder_settings(GivenSettings(embedder={"preset": preset}), model))
    alone = embedder._model
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(NUM_IMAGES)]
        for file in files:
            Image.fromarray(rng.integers(0, 255, (448, 448, 3), dtype=np.uint8)).save(file)
        refs = [ImageRef(path=file.name, file=str(file)) for file in files]

        def plain() -> object:
            return alone.encode([Image.open(file) for file in files], batch_size=BATCH, show_progress_bar=False)

        pairs = [(seconds(lambda: embedder.embed_pages(refs)), seconds(plain)) for _ in range(NUM_PAIRS + 1)][1:]
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    rate = NUM_IMAGES / statistics.median(ours for ours, _ in pairs)
    print(f"{rate:.1f} pages of 448 x 448 a second, {ratio:.2f} times as fast as sentence-transformers alone")


def measure_runners(model: str, preset: str) -> None:
    """Embed the same pages with vLLM's pooling runner and with sentence-transformers, in pairs."""
    embedders = [
        make_single_embedder(embedder_settings(GivenSettings(embedder={"preset": preset, "runner": runner}), model))
        for runner in ("vllm", "sentence_transformers")
    ]
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (448, 448, 3), dtype=np.uint8)) for _ in range(NUM_IMAGES)]
    found = [embedder.embed_pages(images) for embedder in embedders]  # the first call warms up
    pairs = [[seconds(partial(e.embed_pages, images)) for e in embedders] for _ in range(NUM_PAIRS)]
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    rate = NUM_IMAGES / statistics.median(ours for ours, _ in pairs)
    print(
        f"vLLM embeds {rate:.1f} pages of 448 x 448 a second, {ratio:.2f} times as fast as sentence-transformers; "
        f"vectors differ by at most {np.abs(found[0] - found[1]).max():.1e}"
    )


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
