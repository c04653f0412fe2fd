"""Search PDF manuals that nobody here wrote: by text, by OCR, by vectors and by both.

    uv run python benchmarks/manuals.py /data/manuals                                        # text layer alone
    uv run python benchmarks/manuals.py /data/manuals --embedder runs/retriever_quickstart/models/retriever
    uv run python benchmarks/manuals.py /data/manuals --text-embedder /models/all-MiniLM-L6-v2 --ocr-pages 40

The folder gets Debian's packages, pages, the data set (benchmarks/manual_set.py) and an index for each embedder, all of
which are used again. A question is the title of a section, which favours the search by words, and finding its page by
the picture alone takes reading: an embedder that has not learned to read finds next to nothing. OCR is measured on a
sample, as a page takes seconds: how much of the text layer it finds, and what the search by text loses by it on the
questions whose page was read.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from manual_set import make_set
from sentence_transformers import SentenceTransformer

from recipes.indexing.updating import update_index
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.documents.ocr import TextReader
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.records import Page
from rsgrpo.documents.stored_images import WRITING
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, PageImage
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import FoundPage, PageIndex
from rsgrpo.retrieval.measuring.measured_search import search_queries
from rsgrpo.retrieval.measuring.measures import Judgements, measure_run
from rsgrpo.retrieval.measuring.relevance_files import RetrievalSet, read_retrieval_set
from rsgrpo.retrieval.measuring.trec_runs import Run, ScoredPage
from rsgrpo.retrieval.text.fusion import FusionMethod, split_queries
from rsgrpo.retrieval.text.hybrid import DEPTH, FoundBoth, fuse_found, tune_search
from rsgrpo.retrieval.text.lexical import build_index
from rsgrpo.retrieval.text.text_search import TextSearch, open_text_search
from rsgrpo.types import FloatArray, ImageRef

DEV_FRAC, SEED = 0.3, 0
MEASURES = ("mrr@10", "recall@10", "ndcg@10")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class SetPages:
    """The pages of the data set as an index takes them over: those of the store without contents and index pages."""

    store: PageStore
    page_ids: frozenset[str]

    def dates(self) -> Mapping[str, str]:
        """Give no dates: they do not matter here."""
        return {}

    def pages(self) -> Iterator[Page]:
        """Iterate over the pages of the corpus."""
        return (page for page in self.store.pages() if page.page_id in self.page_ids)

    def text_digest(self) -> str:
        """Compute a digest of the texts; see PageStore."""
        return self.store.text_digest()

    def texts(self) -> Iterator[tuple[str, str]]:
        """Iterate over ids and texts of all pages."""
        return self.store.texts()


class TextEmbedder:
    """Embeds the text of pages, not their image, by a model of sentence-transformers that reads text alone."""

    def __init__(self, model: str, texts: Mapping[str, str]) -> None:
        self._model = SentenceTransformer(model, device="cpu")
        self._texts = texts  # by path of the page's image
        self.settings = EmbedderConfig(model=model)
        self.identity = EmbedderIdentity(
            model=model, revision="local", pooling="text", query_instruction="", instruction_place="text", min_pixels=0,
            max_pixels=1, dpi=None, dimension=int(self._model.get_embedding_dimension() or 0),
        )  # fmt: skip

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        """Embed questions."""
        return self._encoded(list(queries))

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        """Embed the texts of the pages that images stand for."""
        return self._encoded([self._texts[page.path] for page in pages if isinstance(page, ImageRef)])

    def _encoded(self, texts: list[str]) -> FloatArray:
        found = self._model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--embedder", help="a model that reads page images")
    parser.add_argument("--text-embedder", help="a model of sentence-transformers that reads text")
    parser.add_argument("--ocr-pages", type=int, default=0, help="pages of the sample that OCR reads")
    parser.add_argument("--workers", type=int, default=0, help="processes that render pages; 0: one a core")
    options = parser.parse_args()
    folder = options.folder.resolve()
    store = make_set(folder, options.workers)
    data = read_retrieval_set(folder)
    pages = SetPages(store=store, page_ids=frozenset(page.page_id for page in data.pages))
    texts = {page.page_id: page.text for page in data.pages}
    print(f"{len(store.documents())} manuals, {store.num_pages:,} pages, of them {len(data.pages):,} in the corpus")
    print(f"{len(data.queries):,} questions; {share_on_page(data):.1%} of the titles stand on their page")
    print_text(data, dict(store.texts()))
    if options.ocr_pages:
        print_ocr(data, pages, texts, options.ocr_pages)
    if options.embedder:
        embedder = SentenceEmbedder(EmbedderConfig(model=str(Path(options.embedder).resolve())))
        print_both("page images", folder, pages, data, embedder)
    if options.text_embedder:
        of_image = {str(page.image_path): page.text for page in pages.pages()}
        print_both("text vectors", folder, pages, data, TextEmbedder(options.text_embedder, of_image))


def share_on_page(data: RetrievalSet) -> float:
    texts = {page.page_id: squeezed(page.text) for page in data.pages}
    return fmean(squeezed(query.text) in texts[next(iter(data.relevant[query.query_id]))] for query in data.queries)


def squeezed(text: str) -> str:
    return "".join(_WORD.findall(text.casefold()))


def told(name: str, run: Run, relevant: Judgements) -> None:
    """Print the measures of a run; questions that nothing was found for count as 0."""
    values = measure_run(run, relevant, mode="strict", measures=MEASURES).values
    print(f"{name:48} {len(relevant):6,} questions   " + "   ".join(f"{key} {values[key]:.3f}" for key in MEASURES))


def print_text(data: RetrievalSet, all_texts: Mapping[str, str]) -> None:
    """Measure BM25 on all questions, with contents and index pages and without them, and the time of a question."""
    queries = {query.query_id: query.text for query in data.queries}
    corpus = {page.page_id: page.text for page in data.pages}
    for name, texts in (("BM25, contents and index pages too", all_texts), ("BM25", corpus)):
        begin = time.process_time()
        index = build_index(texts)
        built = time.process_time()
        run = index.search_all(queries, DEPTH).run
        searched = time.process_time()
        told(name, run, data.relevant)
        milliseconds = 1000 * (searched - built) / len(queries)
        print(f"    {built - begin:.1f} s of a core to build, {milliseconds:.2f} ms a question")


def print_ocr(data: RetrievalSet, pages: SetPages, texts: Mapping[str, str], num_pages: int) -> None:
    """Read a sample of pages that answer questions, and search with what was read in place of their text layer."""
    targets = sorted({page_id for judged in data.relevant.values() for page_id in judged})
    sample = frozenset(random.Random(SEED).sample(targets, num_pages))
    place = pages.store.folder.parent / "ocr_sample"
    (place / WRITING).mkdir(parents=True, exist_ok=True)
    reader = TextReader(place)
    read, seconds = {}, []
    for page in pages.pages():
        if page.page_id in sample:
            pixels = np.asarray(pages.store.read_image(page))
            begin = time.process_time()
            read[page.page_id] = reader.read(pixels, page.sha256).text
            seconds.append(time.process_time() - begin)
    scores = [word_f1(read[page_id], texts[page_id]) for page_id in read]
    print(f"OCR of {num_pages} pages: word F1 {fmean(scores):.3f} (worst {min(scores):.3f}), "
          f"{fmean(seconds):.1f} s of a core a page (near 0: read before)")  # fmt: skip
    asked = {query.query_id: query.text for query in data.queries if sample & data.relevant[query.query_id].keys()}
    relevant = {query_id: data.relevant[query_id] for query_id in asked}
    for name, searched in (("BM25, their text layer", texts), ("BM25, what OCR read of them", {**texts, **read})):
        told(name, build_index(searched).search_all(asked, DEPTH).run, relevant)


def word_f1(read: str, written: str) -> float:
    """Compare two texts as bags of words: 2 · common / (words of one + words of the other)."""
    one, other = (Counter(_WORD.findall(text.casefold())) for text in (read, written))
    return 2 * (one & other).total() / max(1, one.total() + other.total())


def print_both(
    name: str, folder: Path, pages: SetPages, data: RetrievalSet, embedder: SentenceEmbedder | TextEmbedder
) -> None:
    """Embed all pages, tune the weight of the text on the dev questions, and measure on the others."""
    place = folder / f"{name.replace(' ', '_')}.index"
    begin = time.process_time()
    has_index = (place / "index.json").exists()
    with (
        open_index(place, is_writable=True) if has_index else create_index(place, embedder.identity, None, None)
    ) as index:
        report = update_index(index, embedder, pages, on_progress=lambda done, wanted: None)
    seconds = time.process_time() - begin
    index = open_index(place)
    text = open_text_search(index, pages, place)
    searched = search_queries(index, embedder, data.queries, depth=DEPTH, on_bad_item="skip")
    print(f"{name}: {report.num_embedded:,} pages embedded in {seconds:.0f} s; {len(searched.refused)} questions "
          f"refused; {searched.query_embedding_milliseconds:.1f} ms to embed a question, "
          f"{searched.search_milliseconds:.1f} ms to search")  # fmt: skip
    found = both(index, text, searched.run, data)
    tuned = tune_search(found, data.relevant, text, index.identity, queries=str(folder), dev_frac=DEV_FRAC, seed=SEED)
    print(f"    {tuned.num_dev_queries:,} questions to tune on, {tuned.num_test_queries:,} measured; text counts "
          f"{tuned.weight:g}")  # fmt: skip
    test = split_queries(data.relevant, dev_frac=DEV_FRAC, seed=SEED).test
    rows = {**tuned.measures, **equal_weights(found, test)}
    for row, values in rows.items():
        print(f"    {row:44} " + "   ".join(f"{key} {value:.3f}" for key, value in values.items()))


def both(index: PageIndex, text: TextSearch, run: Run, data: RetrievalSet) -> FoundBoth:
    of_id = {page.page_id: page for page in index.pages()}
    return FoundBoth(
        text={query.query_id: text.search(query.text, DEPTH) for query in data.queries},
        vectors={
            query_id: [
                FoundPage(page=of_id[hit.page_id], score=hit.score, rank=rank) for rank, hit in enumerate(hits, 1)
            ]
            for query_id, hits in run.items()
        },
    )


def equal_weights(found: FoundBoth, relevant: Judgements) -> dict[str, Mapping[str, float]]:
    """Measure fusion that nobody tuned, by both rules."""
    methods: tuple[FusionMethod, ...] = ("weighted_sum", "reciprocal_rank")
    rows = {}
    for method in methods:
        run = {
            query_id: [
                ScoredPage(page_id=hit.page.page_id, score=hit.score)
                for hit in fuse_found(found.text[query_id], found.vectors.get(query_id, ()), 0.5, DEPTH, method=method)
            ]
            for query_id in relevant
        }
        rows[f"equal weights, {method}"] = measure_run(run, relevant, mode="strict", measures=MEASURES).values
    return rows


if __name__ == "__main__":
    main()
