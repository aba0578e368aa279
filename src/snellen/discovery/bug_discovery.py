"""For which scenes, that nobody put into the test set, does the model fail?

Paper: Wiles et al. (2022), Discovering Bugs in Vision Models using Off-the-shelf Image Generation and Captioning. Draw
each class plainly, gather the failures that look alike, let a captioner say what they share, draw *new* images by that
sentence, and test whether the model fails on them more often than on plain ones (Fisher's exact test, one-sided,
Benjamini-Hochberg over every sentence tried). What survives is edited by one detail and tried again.

    scenes, captioner, network = DigitScenes(), train_captioner(), shipped_network("faulty")
    embed = lambda images: network.body(network.stem(images)).mean((2, 3))
    report = find_bugs(network, CLASS_NAMES, scenes, captioner.caption, embed, settings=BugSearch(templates=TEMPLATES))
    for bug in report.bugs:
        print(bug)

Misleads (1) where the generator draws the sentence wrongly: its errors look like the model's, so give `realism` and
look at the examples; (2) where other answers are right too (a flower in "a fly on a flower"): name them in `accepted`;
(3) as a rate in the world: a sentence may be rare there, and a generator has its own idea of it. For images that you
have already, `discovery/slices` and `subgroup` look for the same with a held-out half in place of new images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from snellen.discovery._bug import Bug, BugReport, OtherClass, adversarial_set, transfer_table
from snellen.discovery._bug_search import BugSearch, Key, Search, Tested, adjust, telling
from snellen.discovery._failure_sentences import commonest, details_of, edits
from snellen.discovery._off_the_shelf import DiffusersGenerator, TransformersCaptioner
from snellen.discovery._scenes import TEMPLATES, AttributeCaptioner, DigitScenes, train_captioner
from snellen.discovery._trials import Bench, Captioner, Classifier, Embedder, Generator, Realism, UndrawnSentence
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions

__all__ = [
    "TEMPLATES", "AttributeCaptioner", "Bug", "BugReport", "BugSearch", "Captioner", "DiffusersGenerator",
    "DigitScenes", "Embedder", "Generator", "OtherClass", "Realism", "TransformersCaptioner", "UndrawnSentence",
    "adversarial_set", "find_bugs", "train_captioner", "transfer_table",
]  # fmt: skip


def find_bugs(
    model: Classifier,
    class_names: Sequence[str],
    generator: Generator,
    captioner: Captioner,
    embedder: Embedder,
    *,
    classes: Collection[str] | None = None,
    accepted: Mapping[str, Collection[str]] | None = None,
    realism: Realism | None = None,
    settings: BugSearch | None = None,
    seed: int = 0,
) -> BugReport:
    """Sentences on which `model` fails more often than on plain images (Wiles et al., 2022).

    model: images float32 `[B, 3, H, W]` in [0, 1] to scores `[B, K]` or labels `[B]`; for a labels-only snellen model
    its `labels`. generator: (prompt, n, seed) to images. captioner: images to B texts. embedder: images to `[B, D]`,
    in which failures are grouped. classes: those to search, all by default. accepted: class -> further answers that
    are right too (synonyms, parents, things that go along). realism: (images, class) to `[B]`, high where the class is
    surely in the picture. Same seed, same report. Raises InvalidInput on plug-ins that give something else, and when
    the plain prompt fails on more than half of the images of every class.
    """
    settings, names = settings or BugSearch(), list(class_names)
    bench = Bench(generator, names, _accepted(names, accepted or {}), realism, settings.realism_quantile)
    search = Search(model, bench, settings, seed)

    pools, skipped = {}, {}
    for label in _indices("classes", classes if classes is not None else names, names):
        pool = search.mine(label, captioner, embedder)
        failures, n = pool.trial.failures, pool.trial.n
        if 2 * failures > n:
            skipped[names[label]] = f"{failures} of {n} plain images fail: look at the generator and at preprocessing"
        else:
            pools[label] = pool
    if not pools:
        raise InvalidInput(f"classes must hold one that can be searched, got {skipped or 'none'}")

    described = {label: [details_of(text, names[label]) for text in pool.captions] for label, pool in pools.items()}
    tested: dict[Key, Tested] = {}
    tried: set[tuple[int, frozenset[str]]] = set()
    undrawn = 0
    waiting = search.describe(pools, described)
    for _ in range(settings.rounds):
        new = []
        for key in waiting:
            if (key.label, frozenset(key.details)) not in tried:
                tried.add((key.label, frozenset(key.details)))
                found = search.test(key, pools[key.label])
                if found is None:
                    undrawn += 1
                else:
                    tested[key] = found
                    new.append(key)
        adjusted = adjust(tested)
        worst = sorted((key for key in new if adjusted[key] <= settings.alpha), key=lambda key: tested[key].p_value)
        waiting = [
            Key(key.label, details)
            for key in worst[: settings.beam]
            for details in edits(key.details, commonest(described[key.label])[: settings.beam])
        ]

    significant = [
        search.bug(key, tested[key], p_value, pools[key.label])
        for key, p_value in adjusted.items()
        if p_value <= settings.alpha
    ]
    large = [bug for bug in significant if bug.interval.low >= bug.base_rate + settings.min_effect]
    bugs = sorted(telling(large), key=lambda bug: bug.base_rate - bug.interval.low)
    return BugReport(
        search.on_other_classes(bugs, pools),
        len(tested),
        {names[label]: pool.trial.failures / pool.trial.n for label, pool in pools.items()},
        skipped,
        sum(trial.dropped for trial in [pool.trial for pool in pools.values()] + [t.trial for t in tested.values()]),
        sum(not details for of in described.values() for details in of),
        undrawn,
    )


def _accepted(names: Sequence[str], more: Mapping[str, Collection[str]]) -> list[frozenset[int]]:
    _indices("accepted", more, names)
    accepted = [
        frozenset([label, *_indices(f"accepted[{name!r}]", more.get(name, ()), names)])
        for label, name in enumerate(names)
    ]
    for name, answers in zip(names, accepted, strict=True):
        if len(answers) == len(names):
            raise InvalidInput(
                f"accepted[{name!r}] holds every class, so that no answer would be wrong; leave some out"
            )
    return accepted


def _indices(argument: str, wanted: Collection[str], names: Sequence[str]) -> list[int]:
    unknown = [name for name in wanted if name not in names]
    if unknown or len(set(names)) < len(names) or isinstance(wanted, str):
        raise InvalidInput(f"{argument} must be some of the distinct class_names {list(names)}, got {list(wanted)}")
    return [names.index(name) for name in dict.fromkeys(wanted)]


register_functions(
    "discovery/bugs",
    paper="Wiles et al., 2022",
    card="bug-discovery",
    access=Access.LABELS,
    data="text prompts, with a generator and a captioner",
    module=__name__,
)
